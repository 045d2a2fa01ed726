"""Structured logs: an event's name and its fields, as coloured lines for a terminal or as JSON for machines."""

import io
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO, cast

import structlog

CURRENT_REQUEST: ContextVar[str] = ContextVar("current_request")
"""Its id. Set at every door, so that each line that is logged for a request says so."""


def configure(*, json: bool, level: str = "info") -> None:
    """Set up logging for this process: everything goes to stderr."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Undemanding(sys.stderr))),
        cache_logger_on_first_use=True,
    )


_HARMLESS = (OSError, ValueError)
"""The latter from a closed file."""


class _Undemanding(io.TextIOBase):
    """A stream for lines that nobody has to read: a full disk under a log, a reader that has gone, a closed file is no reason to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(*_HARMLESS):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(*_HARMLESS):
            self._stream.flush()


def _add_request_id(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = CURRENT_REQUEST.get(None)
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(component=name)
    return logger
