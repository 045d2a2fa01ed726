"""The template process: it has imported all that an instance needs, and becomes one by forking, in milliseconds instead of half a second.

It runs no thread, for threads do not survive a fork, and opens nothing that an instance opens for itself.
"""

import os
import selectors
import socket

from flatshare.wire.template import MAX_MESSAGE_BYTES, Born, Ended, Order, Report, Stillborn, parse_order, render

_STREAMS = 2  # descriptors that come with an order


class Template:
    """Its channel is a Unix socket of datagrams to the driver; when the driver's end closes, however that comes about, it is done."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)
        self._children: dict[int, int] = {}
        """Process ids by pidfd."""

    def serve(self) -> tuple[str, ...] | None:
        """Carry out orders. None when the driver has gone; in each process that is forked, the arguments that it is to live by."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._children:
                    self._reap(key.fd)
                    continue
                data, streams, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, _STREAMS)
                if not data:
                    return None
                order = parse_order(data)
                if self._fork(order, streams):
                    return order.arguments

    def _fork(self, order: Order, streams: list[int]) -> bool:
        """Whether this is the new process."""
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(Stillborn(order.number, f"no process could be forked: {error}"))
        else:
            if pid == 0:
                self._leave(streams)
                return True
            self._adopt(order, pid)
        for stream in streams:
            os.close(stream)
        return False

    def _adopt(self, order: Order, pid: int) -> None:
        descriptor = os.pidfd_open(pid)  # before it is reaped, so that the id is still this process's
        self._children[descriptor] = pid
        self._selector.register(descriptor, selectors.EVENT_READ)
        self._tell(Born(order.number, pid), descriptor)

    def _leave(self, streams: list[int]) -> None:
        """In the new process: nothing of the template's is kept open, or its death would not be noticed."""
        self._selector.close()
        self._channel.close()
        for descriptor in self._children:
            os.close(descriptor)
        for number, stream in zip((0, 1), streams, strict=True):
            os.dup2(stream, number)
        os.dup2(1, 2)
        for stream in streams:
            os.close(stream)
        os.setsid()

    def _reap(self, descriptor: int) -> None:
        pid = self._children.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        self._tell(Ended(pid, os.waitstatus_to_exitcode(status)))

    def _tell(self, message: Report, *descriptors: int) -> None:
        try:
            socket.send_fds(self._channel, [render(message)], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return  # the driver has gone: the channel's end is read next
