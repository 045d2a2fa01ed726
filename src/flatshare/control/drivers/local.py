"""The driver of one machine: an instance is a process of its own, forked from a template and reached through a Unix socket.

Its standard input is a pipe that we hold open and never write to. An instance drains and exits when it reads the end of it, and
the kernel closes our end however we die: so no instance outlives us, not even after SIGKILL.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson

from flatshare.client.instance import InstanceClient
from flatshare.control.drivers.base import InstanceSpec, RunningInstance
from flatshare.control.drivers.sockets import SocketFolder
from flatshare.control.drivers.template import Child, TemplateProcess
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import InstanceId
from flatshare.core.settings import FleetSettings

_TEMPLATE = (sys.executable, "-m", "flatshare", "instance", "--template")
_ENVIRONMENT = {
    # glibc: one heap, and no per-thread caches of freed chunks. 48 models served and unloaded left 13 MB pinned with the defaults
    # (pages that hold one cached chunk each), 3 MB so; throughput is the same, since the engine has an arena of its own.
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "TOKENIZERS_PARALLELISM": "false",  # one thread for each worker; pools of several threads collapse
    "OMP_NUM_THREADS": "1",  # and no pool of numpy's either: a template with threads cannot be forked
}
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket address, less its final zero
_PING_EVERY_S = 0.005  # an instance is up 15 ms after its fork
_PING_TIMEOUT_S = 2.0  # SageMaker's own for /ping
_SET_MEMORY_TIMEOUT_S = 10.0  # unloading what no longer fits takes milliseconds; a hung instance must not hold up the others
_LOG_TAIL_BYTES = 600  # with the sentence around it, within FailureReason's 1,024


@dataclass(frozen=True, slots=True)
class _Local:
    child: Child
    stdin: int
    """Our end of it."""
    client: InstanceClient
    socket_path: Path


class LocalDriver:
    """Made, used and closed on one event loop."""

    def __init__(self, settings: FleetSettings, *, command: tuple[str, ...] = _TEMPLATE, published_code: Path | None = None) -> None:
        self._settings = settings
        self._published_code = published_code
        self._template = TemplateProcess(command, _ENVIRONMENT, settings.log_dir / "template.log")
        self._sockets = SocketFolder()
        self._instances: dict[InstanceId, _Local] = {}

    def prepare(self) -> None:
        """Begin to start the template, so that the first instance need not wait for it."""
        self._settings.log_dir.mkdir(parents=True, exist_ok=True)
        self._template.start()

    async def start(self, spec: InstanceSpec) -> RunningInstance:
        is_ready = False
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                self._instances[spec.id] = local = await self._spawn(spec)
                await self._wait_until_it_answers(spec, local)
            is_ready = True
        except TimeoutError:
            sentence = f"The instance {spec.name} did not answer /ping within {self._settings.start_timeout_s:g} s"
            raise InstanceGone(self._with_log(sentence, spec.id)) from None
        finally:
            if not is_ready:
                await self._end(spec.id)
        return RunningInstance(spec.id, str(local.socket_path), local.child.pid)

    async def stop(self, instance_id: InstanceId) -> None:
        local = self._instances.get(instance_id)
        if local is None:
            return
        local.child.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._settings.stop_timeout_s):
                await local.child.ended.wait()
        except TimeoutError:
            pass  # it has had its time
        finally:
            await self._end(instance_id)

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
            await self._instances[instance_id].child.ended.wait()

    def is_alive(self, instance_id: InstanceId) -> bool:
        return instance_id in self._instances and self._instances[instance_id].child.is_alive

    async def close(self) -> None:
        async with asyncio.TaskGroup() as stops:
            for instance_id in self._instances:
                stops.create_task(self.stop(instance_id))
        await self._template.close()
        self._sockets.remove()

    async def _spawn(self, spec: InstanceSpec) -> _Local:
        socket_path = self._sockets.path / f"{spec.id}.sock"
        if len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH_BYTES:
            raise InstanceGone(
                f"The socket path {socket_path} is longer than {_MAX_SOCKET_PATH_BYTES} bytes: set TMPDIR to a shorter folder"
            )
        self.prepare()
        child, stdin = await self._template.fork(self._arguments(spec, socket_path), self._log_path(spec.id))
        return _Local(child, stdin, InstanceClient(str(socket_path)), socket_path)

    def _arguments(self, spec: InstanceSpec, socket_path: Path) -> tuple[str, ...]:
        """Of `flatshare instance`."""
        settings = self._settings
        return (
            "--socket", str(socket_path), "--store", str(settings.store_dir), "--memory", str(spec.memory_bytes),
            "--disk", str(settings.disk_bytes), "--workers", str(settings.workers),
            "--changed-artifacts", settings.changed_artifacts, "--id", spec.id, "--name", spec.name, "--follow-stdin",
            *(["--json-logs"] if settings.has_json_logs else []),
            *(["--published-code", str(self._published_code)] if self._published_code else []),
            *(["--settings", str(settings.settings_path)] if settings.settings_path else []),
        )  # fmt: skip

    async def _wait_until_it_answers(self, spec: InstanceSpec, local: _Local) -> None:
        ended = asyncio.create_task(local.child.ended.wait())
        try:
            while not ended.done():
                if await _answers_ping(local.client):
                    return
                await asyncio.wait({ended}, timeout=_PING_EVERY_S)
        finally:
            ended.cancel()
        how = "died" if local.child.status is None else f"exited with status {local.child.status}"
        raise InstanceGone(self._with_log(f"The instance {spec.name} {how} before it was ready", spec.id))

    async def _end(self, instance_id: InstanceId) -> None:
        """Whatever it does: after this the process has gone, and its socket too."""
        local = self._instances.pop(instance_id, None)
        if local is None:
            return
        local.client.close()
        local.child.send(signal.SIGKILL)
        os.close(local.stdin)
        await local.child.ended.wait()
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
