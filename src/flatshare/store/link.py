"""The way to the store, shared by all fetches of this machine, whichever process they run in: bounded, and demand before prefetch.

    store/link     who may use the link next: the kernel's boot, and two moments on its clock (all fetches, fetches ahead)
    store/demand   held shared by every fetch that somebody waits for; whoever fetches ahead waits until nobody holds it

Both are the kernel's locks: a fetch that is killed lets go of them.
"""

import fcntl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from flatshare.core.call import Urgency
from flatshare.core.settings import DiskSettings

_BOOT_BYTES = 36
_MOMENTS = struct.Struct("<dd")


class Link:
    """One fetch's part of it. `folder` is the same for all of the machine."""

    def __init__(self, folder: Path, settings: DiskSettings, urgency: Urgency) -> None:
        self._path = folder / "link"
        self._demand_path = folder / "demand"
        self._per_s = settings.bandwidth_bytes
        self._share_ahead = settings.ahead_share
        self._is_ahead = urgency is Urgency.AHEAD

    @contextmanager
    def open(self) -> Iterator[None]:
        """While somebody waits for this fetch, those that fetch ahead stand back."""
        if self._is_ahead:
            yield
            return
        with self._demand_path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def take(self, size_bytes: int, is_over: Event) -> None:
        """Wait until so many bytes may come; not beyond `is_over`."""
        if self._is_ahead:
            with self._demand_path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        if self._per_s is not None:
            is_over.wait(self._reserve(size_bytes, self._per_s) - time.monotonic())

    def _reserve(self, size_bytes: int, per_s: int) -> float:
        """The moment from which the link is ours, on the machine's clock; it is the next one's when our bytes have passed."""
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            boot, now_s = _boot(), time.monotonic()
            found = file.read()
            is_known = len(found) == _BOOT_BYTES + _MOMENTS.size and found[:_BOOT_BYTES] == boot
            free_s, free_ahead_s = _MOMENTS.unpack(found[_BOOT_BYTES:]) if is_known else (now_s, now_s)
            begin_s = max(now_s, free_s, free_ahead_s if self._is_ahead else 0.0)
            took_s = size_bytes / per_s
            if self._is_ahead:
                free_ahead_s = begin_s + took_s / self._share_ahead
            file.truncate(0)
            file.write(boot + _MOMENTS.pack(max(now_s, free_s) + took_s, free_ahead_s))
            return float(begin_s)


def _boot() -> bytes:
    """The clock starts anew with each boot, and what was written before means nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()[:_BOOT_BYTES]
