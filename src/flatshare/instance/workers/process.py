"""One worker process, from the instance's side: started, asked, told, killed, and never believed."""

import asyncio
import itertools
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flatshare.core.errors import WorkerDied
from flatshare.core.settings import WorkerSettings
from flatshare.instance.workers.prints import log_prints
from flatshare.pyworker.frames import BadFrame, Frame, NamedArray, Packed, Unpacker, pack, receive, send_some
from flatshare.telemetry.log import get_logger

log = get_logger("workers")
_SECRETS = re.compile(r"^AWS_|^GOOGLE_|^AZURE_|SECRET|TOKEN|PASSWORD|CREDENTIAL|API_KEY", re.IGNORECASE)
_START_S = 60.0
_STOP_S = 5.0
_numbers = itertools.count(1)
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
"""What a model allocates for a run stays in the heap for the next one; the hygiene gives it back in pauses. With glibc's thresholds
every intermediate tensor is mapped, faulted in page by page and unmapped: 2,500 page faults and a third of the time of a request that
runs forty layers (decision 0060)."""

Notice = Callable[["WorkerProcess", Frame], None]


class WorkerProcess:
    """Made by `start`, on the event loop. Answers go to whoever asked; everything else to `on_notice`."""

    def __init__(self, process: Process, connection: socket.socket, on_notice: Notice, on_end: Callable[["WorkerProcess"], None]) -> None:
        self.name = f"worker-{next(_numbers)}"
        self.pid = process.pid
        self.end: str | None = None
        """Why it is no more; None while it lives."""
        self._process = process
        self._connection = connection
        self._on_notice = on_notice
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._unpacker = Unpacker()
        self._outbox: deque[tuple[memoryview, Packed]] = deque()
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._ids = itertools.count(1)
        self._ready = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._on_readable)
        self._tasks = [self._loop.create_task(self._watch()), self._loop.create_task(log_prints(process, self.name))]

    @classmethod
    async def start(
        cls, python: Path | None, shim: Path, settings: WorkerSettings, on_notice: Notice, on_end: Callable[["WorkerProcess"], None]
    ) -> "WorkerProcess":
        """With the environment's Python, or ours. Raises WorkerDied if it does not come up."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = [str(python or sys.executable), "-m", "flatshare.pyworker", str(theirs.fileno())]
        command += ["--private-bytes", str(settings.private_bytes), *([] if settings.is_tidy else ["--no-hygiene"])]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=PIPE, stderr=asyncio.subprocess.STDOUT, cwd=shim,
                env=_environment(shim, python), pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise WorkerDied(f"no worker could be started: {error}") from error
        finally:
            theirs.close()
        worker = cls(process, ours, on_notice, on_end)
        try:
            async with asyncio.timeout(_START_S):
                await worker._ready
        except TimeoutError:
            worker.kill(f"it was not ready within {_START_S:.0f} s")
            raise WorkerDied(f"a worker was not ready within {_START_S:.0f} s") from None
        return worker

    async def ask(self, kind: str, tensors: Iterable[NamedArray] = (), *, timeout_s: float, **fields: Any) -> Frame:
        """Send a job and wait for its answer. Past the time the worker is killed, GIL or not. Raises WorkerDied."""
        identity = next(self._ids)
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[identity] = answer
        self.tell(kind, tensors, id=identity, **fields)
        timer = self._loop.call_later(timeout_s, self.kill, f"it had not answered after {timeout_s:g} s")
        try:
            return await answer
        finally:
            timer.cancel()
            self._waiting.pop(identity, None)

    def tell(self, kind: str, tensors: Iterable[NamedArray] = (), **fields: Any) -> None:
        """Send something that has no answer. To a worker that is no more, nothing happens but that `ask` fails."""
        if self.end is not None:
            self._fail_waiting()
            return
        packed = pack(Frame(kind, fields, tuple(tensors)))
        self._outbox.append((memoryview(packed.data), packed))
        if len(self._outbox) == 1:
            self._on_writable()

    def kill(self, reason: str) -> None:
        """At once, its children too."""
        if self.end is None:
            self._finish(reason)

    async def stop(self) -> None:
        """Let it finalize its models, then make sure that it is gone."""
        if self.end is None:
            self.tell("stop")
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await asyncio.shield(self._tasks[0])
            self.kill("it was stopped")
        await asyncio.gather(*self._tasks)

    @property
    def anonymous_bytes(self) -> int:
        """Private memory, as the kernel counts it; nothing if it is no more."""
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
        return 0

    # What the event loop calls.

    def _on_readable(self) -> None:
        try:
            data, descriptors = receive(self._connection)
            if not data:
                self._loop.remove_reader(self._connection.fileno())  # `_watch` says why it went
                return
            for frame in self._unpacker.feed(data, descriptors):
                self._take(frame)
        except BlockingIOError:
            return
        except (OSError, BadFrame) as error:
            self.kill(f"it sent what is no message: {error}")

    def _take(self, frame: Frame) -> None:
        waiting = self._waiting.get(frame.fields.get("id", 0))
        if frame.kind == "ready":
            if not self._ready.done():
                self._ready.set_result(None)
        elif waiting is not None:
            if not waiting.done():
                waiting.set_result(frame)
        else:
            self._on_notice(self, frame)

    def _on_writable(self) -> None:
        while self._outbox:
            view, packed = self._outbox[0]
            is_begun = len(view) < len(packed.data)
            try:
                sent = send_some(self._connection, view, () if is_begun else packed.descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._connection.fileno(), self._on_writable)
                return
            except OSError:
                return  # it is going: `_watch` says why
            if sent < len(view):
                self._outbox[0] = (view[sent:], packed)
                continue
            packed.close()
            self._outbox.popleft()
        self._loop.remove_writer(self._connection.fileno())

    async def _watch(self) -> None:
        """Reap it, and say how it ended."""
        status = await self._process.wait()
        if self.end is None:
            self._finish(_how(status))

    def _finish(self, reason: str) -> None:
        self.end = reason
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        self._connection.close()
        self._unpacker.close()
        for _, packed in self._outbox:
            packed.close()
        self._outbox.clear()
        self._fail_waiting()
        self._on_end(self)

    def _fail_waiting(self) -> None:
        for future in (*self._waiting.values(), self._ready):
            if not future.done():
                future.set_exception(WorkerDied(f"the worker process ended: {self.end}"))
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # heard, should nobody wait for it any more


def _how(status: int) -> str:
    if status >= 0:
        return f"it exited with status {status}"
    name = signal.Signals(-status).name if -status in {s.value for s in signal.Signals} else str(-status)
    hint = ": out of memory, or killed by somebody" if -status == signal.SIGKILL else ""
    return f"it was ended by {name}{hint}"


def _environment(shim: Path, python: Path | None) -> dict[str, str]:
    """Ours without what may be a secret, one thread per library, and nothing of flatshare but the worker to import."""
    kept = {name: value for name, value in os.environ.items() if not _SECRETS.search(name) and not name.startswith("PYTHON")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = {"PYTHONPATH": str(shim), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if python is not None:
        own["PATH"] = f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, **threads, **_MALLOC, **own}
