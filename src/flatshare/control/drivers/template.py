"""The driver's side of the template process: what forks instances, and each of its children.

A child's end is told by the template, with its status, and by the kernel, through a descriptor of the process: so nothing is missed
when the template dies. A template that has died is replaced at the next start; its children live on.
"""

import asyncio
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.errors import InstanceGone
from flatshare.telemetry.log import get_logger
from flatshare.wire.template import MAX_MESSAGE_BYTES, Born, Ended, Order, Stillborn, parse_report, render

log = get_logger("control")
_STATUS_WITHIN_S = 1.0  # the template reports an end at once, if it can
_LEAVE_WITHIN_S = 5.0


@dataclass(eq=False, slots=True)
class Child:
    """A process that the template has forked."""

    pid: int
    descriptor: int
    """Of the process (pidfd): readable once it has ended; a signal through it never reaches another process of the same id."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int | None = None
    """Its exit status, if somebody could tell."""

    @property
    def is_alive(self) -> bool:
        return not self.ended.is_set() and not select.select([self.descriptor], [], [], 0)[0]

    def send(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, number)


class TemplateProcess:
    """One process, started when it is first needed, again if it has died. Used on one event loop."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str], log_path: Path) -> None:
        self._command = command
        self._environment = environment
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._orders: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, Child] = {}
        self._count = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin to import, if that has not begun: what is forked later waits for less."""
        if self._channel is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                self._command, stdin=theirs.fileno(), stdout=log_file, stderr=subprocess.STDOUT, env=os.environ | self._environment,
                start_new_session=True,  # Ctrl-C in our terminal is ours: we drain first, then tell the instances
            )  # fmt: skip
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def fork(self, arguments: tuple[str, ...], log_path: Path) -> tuple[Child, int]:
        """A new process with these arguments, its output in `log_path`; and our end of its stdin. Raises InstanceGone."""
        self.start()
        assert self._channel is not None, "it has just been started. This is a bug."
        self._count += 1
        number, born = self._count, asyncio.get_running_loop().create_future()
        self._orders[number] = born
        theirs, ours = os.pipe()
        try:
            with log_path.open("ab") as log_file:
                socket.send_fds(self._channel, [render(Order(number, arguments))], [theirs, log_file.fileno()])
            return await born, ours
        except OSError as error:
            os.close(ours)
            raise InstanceGone(f"The template process takes no orders: {error}. Its log is {self._log_path}") from error
        except BaseException:
            os.close(ours)  # and whatever is forked for this order reads the end of its stdin, and ends
            raise
        finally:
            os.close(theirs)
            self._orders.pop(number, None)

    async def close(self) -> None:
        """Let the process end. Its children have been stopped before."""
        self._lose()
        for child in tuple(self._children.values()):  # of starts that were given up
            child.send(signal.SIGKILL)
            self._end(child.pid, None)
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, _LEAVE_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
            self._process = None

    def _read(self) -> None:
        assert self._channel is not None, "read after it was lost. This is a bug."
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            self._died()
            return
        match parse_report(data):
            case Born(number=number, pid=pid):
                self._adopt(number, Child(pid, descriptors[0]))
            case Stillborn(number=number, reason=reason):
                self._settle(number, InstanceGone(reason))
            case Ended(pid=pid, status=status):
                self._end(pid, status)

    def _adopt(self, number: int, child: Child) -> None:
        self._children[child.pid] = child
        asyncio.get_running_loop().add_reader(child.descriptor, self._notice_end, child)
        self._settle(number, child)

    def _settle(self, number: int, outcome: Child | InstanceGone) -> None:
        """A child that nobody waits for any more is ended."""
        born = self._orders.get(number)
        if born is None or born.done():
            if isinstance(outcome, Child):
                outcome.send(signal.SIGKILL)
        elif isinstance(outcome, Child):
            born.set_result(outcome)
        else:
            born.set_exception(outcome)

    def _notice_end(self, child: Child) -> None:
        """From the kernel. Who can say how it ended is about to, if anybody."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.descriptor)
        loop.call_later(_STATUS_WITHIN_S if self._channel is not None else 0.0, self._end, child.pid, None)

    def _end(self, pid: int, status: int | None) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            return
        asyncio.get_running_loop().remove_reader(child.descriptor)
        os.close(child.descriptor)
        child.status = status
        child.ended.set()

    def _died(self) -> None:
        log.error("template_died", log=str(self._log_path), consequence="instances go on; the next start brings up another")
        self._lose()
        assert self._process is not None, "its channel was open. This is a bug."
        self._process.kill()  # it is on its way out, or good for nothing
        self._process.wait()

    def _lose(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        for number in tuple(self._orders):
            self._settle(number, InstanceGone(f"The template process died before it could fork. Its log is {self._log_path}"))
