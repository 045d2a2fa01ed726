"""What models print: line by line to the instance's log, at a rate that cannot hurt anybody."""

import io
import os
import time

_BURST_BYTES = 64 * 1024
_RATE_BYTES_S = 16 * 1024
_LONGEST_BYTES = 8 * 1024


class BoundedPrints(io.TextIOBase):
    """Stands for stdout and stderr. Beyond the rate, what is printed is counted and dropped; printing never waits and never fails."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = ""
        self._budget = float(_BURST_BYTES)
        self._filled_s = time.monotonic()
        self._dropped_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        size = len(text)
        if len(self._line) + size > _LONGEST_BYTES:
            self._dropped_bytes += size
            return size
        self._line += text
        if text.endswith("\n"):  # print() writes its pieces one by one
            self.flush()
        return size

    def flush(self) -> None:
        line, self._line = self._line, ""
        self._refill()
        if len(line) > self._budget:
            self._dropped_bytes += len(line)
            return
        self._budget -= len(line)
        if self._dropped_bytes:
            line = f"[{self._dropped_bytes} characters were dropped: models may print {_RATE_BYTES_S} a second]\n{line}"
            self._dropped_bytes = 0
        if line:
            self._put(line.encode("utf-8", "replace"))

    def fileno(self) -> int:
        return self._descriptor

    def _refill(self) -> None:
        now = time.monotonic()
        self._budget = min(_BURST_BYTES, self._budget + (now - self._filled_s) * _RATE_BYTES_S)
        self._filled_s = now

    def _put(self, data: bytes) -> None:
        try:
            os.write(self._descriptor, data)
        except OSError:
            self._dropped_bytes += len(data)  # the instance is on its way out, or the pipe is full
