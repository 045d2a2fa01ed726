"""What every test stands on: the event loop that the servers run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production: its transports and subprocesses differ from asyncio's in small ways that have bitten us."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The equality matrix: the largest difference that each family, task and source of weights showed, as the tests noted them."""
    largest: dict[tuple[str, str, str], float] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "equality":
                family, task, source, difference = value
                largest[family, task, source] = max(difference, largest.get((family, task, source), 0.0))
    if largest:
        terminalreporter.section("equality with transformers and sentence-transformers")
        for (family, task, source), difference in sorted(largest.items()):
            terminalreporter.line(f"{family:<12} {task:<32} {source:<25} {difference:.1e}")
