"""Cold starts, as a boto3 caller meets them."""

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatshare.bench.server import RunningServer
from flatshare.bench.tenants import Tenant, text_of


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """Seconds per call, and how many distinct models were called."""

    seconds: tuple[float, ...]
    distinct_models: int


def warm_page_cache(server: RunningServer, tenants: list[Tenant], samples: int, progress: Callable[[], None]) -> ColdStarts:
    """Call the models round and round with room for only some: each was evicted by the others before its turn comes again.

    Raises RuntimeError if a call met a resident model, since that would not be a cold start.
    """
    seconds = []
    for index in range(samples):
        seconds.append(_cold_call(server, tenants[index % len(tenants)]))
        progress()
    return ColdStarts(tuple(seconds), len({t.target for t in tenants[:samples]}))


def from_disk(server: RunningServer, tenants: list[Tenant], store_dir: Path, samples: int, progress: Callable[[], None]) -> ColdStarts:
    """Unload everything and drop all packs from the page cache before each call."""
    seconds = []
    for index in range(samples):
        server.unload_all()
        drop_from_page_cache(store_dir / "packs")
        seconds.append(_cold_call(server, tenants[index % len(tenants)]))
        progress()
    return ColdStarts(tuple(seconds), len({t.target for t in tenants[:samples]}))


def drop_from_page_cache(folder: Path) -> None:
    """Raises RuntimeError if a page stays, since that would not be a start from disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            left = _resident_pages(descriptor)
        finally:
            os.close(descriptor)
        if left:
            raise RuntimeError(f"{left} pages of {path.name} stay in the page cache: somebody maps it still")


def _resident_pages(descriptor: int) -> int:
    """Pages of the file in the page cache, by mincore(2)."""
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as view:
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        anchor = ctypes.c_char.from_buffer(view)
        status = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), flags)
        del anchor
        if status != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
        return sum(flag & 1 for flag in flags)


def _cold_call(server: RunningServer, tenant: Tenant) -> float:
    text = text_of(30, tenant.seed)
    started = time.perf_counter()
    _, headers = server.invoke(tenant.target, text)
    took = time.perf_counter() - started
    if "x-flatshare-cold-start-ms" not in headers:
        raise RuntimeError(f"{tenant.target} was in memory: give the server less of it, or call more models")
    return took
