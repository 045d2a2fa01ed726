"""The driver of one machine: an instance is a process of its own, reached through a Unix socket.

Its standard input is a pipe that we hold open and never write to. An instance drains and exits when it reads the end of it, and
the kernel closes our end however we die: so no instance outlives us, not even after SIGKILL.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from dataclasses import dataclass
from pathlib import Path

import orjson

from flatshare.client.instance import InstanceClient
from flatshare.control.drivers.base import InstanceSpec, RunningInstance
from flatshare.control.drivers.sockets import SocketFolder
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import InstanceId
from flatshare.core.settings import FleetSettings

_COMMAND = (sys.executable, "-m", "flatshare", "instance")
_ENVIRONMENT = {
    # glibc: one heap, and no per-thread caches of freed chunks. 48 models served and unloaded left 13 MB pinned with the defaults
    # (pages that hold one cached chunk each), 3 MB so; throughput is the same, since the engine has an arena of its own.
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "TOKENIZERS_PARALLELISM": "false",  # one thread for each worker; pools of several threads collapse
    "OMP_NUM_THREADS": "1",
}
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket address, less its final zero
_PING_EVERY_S = 0.02
_PING_TIMEOUT_S = 2.0  # SageMaker's own for /ping
_SET_MEMORY_TIMEOUT_S = 10.0  # unloading what no longer fits takes milliseconds; a hung instance must not hold up the others
_LOG_TAIL_BYTES = 600  # with the sentence around it, within FailureReason's 1,024


@dataclass(frozen=True, slots=True)
class _Local:
    process: Process
    client: InstanceClient
    socket_path: Path


class LocalDriver:
    """Made, used and closed on one event loop."""

    def __init__(self, settings: FleetSettings, *, command: tuple[str, ...] = _COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._sockets = SocketFolder()
        self._instances: dict[InstanceId, _Local] = {}

    async def start(self, spec: InstanceSpec) -> RunningInstance:
        local = await self._spawn(spec)
        self._instances[spec.id] = local
        is_ready = False
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._wait_until_it_answers(spec, local)
            is_ready = True
        except TimeoutError:
            sentence = f"The instance {spec.name} did not answer /ping within {self._settings.start_timeout_s:g} s"
            raise InstanceGone(self._with_log(sentence, spec.id)) from None
        finally:
            if not is_ready:
                self._kill(local)
                await self._forget(spec.id)
        return RunningInstance(spec.id, str(local.socket_path), local.process.pid)

    async def stop(self, instance_id: InstanceId) -> None:
        local = self._instances.get(instance_id)
        if local is None:
            return
        if local.process.returncode is None:
            local.process.terminate()
            try:
                async with asyncio.timeout(self._settings.stop_timeout_s):
                    await local.process.wait()
            except TimeoutError:
                self._kill(local)
        await self._forget(instance_id)

    async def set_memory(self, instance_id: InstanceId, memory_bytes: int) -> None:
        local = self._instances.get(instance_id)
        if local is None:
            raise InstanceGone(f"the instance {instance_id} has gone")
        body = orjson.dumps({"memory_bytes": memory_bytes})
        reply = await local.client.request("PUT", "/flatshare/memory", body=body, timeout_s=_SET_MEMORY_TIMEOUT_S)
        if reply.status != 200:
            raise InstanceGone(f"the instance {instance_id} refused its new share of memory: {reply.body.decode(errors='replace')}")

    async def exited(self, instance_id: InstanceId) -> None:
        if instance_id in self._instances:
            await self._instances[instance_id].process.wait()

    def is_alive(self, instance_id: InstanceId) -> bool:
        return instance_id in self._instances and self._instances[instance_id].process.returncode is None

    async def close(self) -> None:
        async with asyncio.TaskGroup() as stops:
            for instance_id in self._instances:
                stops.create_task(self.stop(instance_id))
        self._sockets.remove()

    async def _spawn(self, spec: InstanceSpec) -> _Local:
        socket_path = self._sockets.path / f"{spec.id}.sock"
        if len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH_BYTES:
            raise InstanceGone(
                f"The socket path {socket_path} is longer than {_MAX_SOCKET_PATH_BYTES} bytes: set TMPDIR to a shorter folder"
            )
        settings = self._settings
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        arguments = (
            "--socket", str(socket_path), "--store", str(settings.store_dir), "--memory", str(spec.memory_bytes),
            "--disk", str(settings.disk_bytes), "--workers", str(settings.workers),
            "--changed-artifacts", settings.changed_artifacts,
        )  # fmt: skip
        with self._log_path(spec.id).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command, *arguments, "--id", spec.id, "--name", spec.name, "--follow-stdin",
                *(["--json-logs"] if settings.has_json_logs else []),
                stdin=PIPE, stdout=log, stderr=STDOUT,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C in our terminal is ours: we drain first, then tell them
            )  # fmt: skip
        return _Local(process, InstanceClient(str(socket_path)), socket_path)

    async def _wait_until_it_answers(self, spec: InstanceSpec, local: _Local) -> None:
        exit_code = asyncio.create_task(local.process.wait())
        try:
            while not exit_code.done():
                if await _answers_ping(local.client):
                    return
                await asyncio.wait({exit_code}, timeout=_PING_EVERY_S)
        finally:
            exit_code.cancel()
        sentence = f"The instance {spec.name} exited with status {local.process.returncode} before it was ready"
        raise InstanceGone(self._with_log(sentence, spec.id))

    def _kill(self, local: _Local) -> None:
        if local.process.returncode is None:
            local.process.kill()

    async def _forget(self, instance_id: InstanceId) -> None:
        """After this the process has been reaped, and its socket is gone."""
        local = self._instances.pop(instance_id, None)
        if local is None:
            return
        local.client.close()
        if local.process.stdin is not None:
            local.process.stdin.close()
        await local.process.wait()
        local.socket_path.unlink(missing_ok=True)

    def _with_log(self, sentence: str, instance_id: InstanceId) -> str:
        path = self._log_path(instance_id)
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace").strip()
        return f"{sentence}. Its log, {path}, ends: {tail or '(nothing)'}"

    def _log_path(self, instance_id: InstanceId) -> Path:
        return self._settings.log_dir / f"{instance_id}.log"


async def _answers_ping(client: InstanceClient) -> bool:
    try:
        return (await client.request("GET", "/ping", timeout_s=_PING_TIMEOUT_S)).status == 200
    except (InstanceGone, TimeoutError):
        return False
