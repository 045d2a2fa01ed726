"""What every test stands on: the event loop that the servers run on."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production: its transports and subprocesses differ from asyncio's in small ways that have bitten us."""
    return {"uvloop": uvloop.new_event_loop}
