"""What a worker prints, into the instance's log: at a rate that cannot fill a disk, whatever runs in it."""

import asyncio
from asyncio.subprocess import Process

from flatshare.telemetry.log import get_logger

log = get_logger("workers")
_READ_BYTES = 16 * 1024
_PER_SECOND = 64 * 1024  # what native code floods past the worker's own bound waits in its pipe, and it with it
_LONGEST_LINE = 2000


async def log_prints(process: Process, worker: str) -> None:
    """Until the worker has closed its output."""
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    budget, since_s = _PER_SECOND, loop.time()
    while data := await process.stdout.read(_READ_BYTES):
        for line in data.decode(errors="replace").splitlines():
            if line.strip():
                log.info("model_printed", worker=worker, text=line[:_LONGEST_LINE])
        budget -= len(data)
        if budget <= 0:
            await asyncio.sleep(max(0.0, since_s + 1 - loop.time()))
            budget, since_s = _PER_SECOND, loop.time()
