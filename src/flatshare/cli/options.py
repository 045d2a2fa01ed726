"""What the commands share: option types, the terminal, and how errors are shown."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import orjson
from rich.console import Console

from flatshare.core.settings import KEEP, REPLACE
from flatshare.core.sizes import parse_size

F = TypeVar("F", bound=Callable[..., object])
DEFAULT_URL = "http://127.0.0.1:8080"
console = Console()
errors = Console(stderr=True)


class _Size(click.ParamType[int]):
    """`2GiB`, `500MB`, `1048576`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Size()


def _checked_url(_: click.Context, __: click.Parameter, url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"'{url}' has no scheme: write it as http://host:port")
    return url.rstrip("/")


def cores() -> int:
    """Cores that this process may use, at most eight: each engine thread reserves a workspace of the memory budget."""
    return min(8, len(os.sched_getaffinity(0)))


def changed_artifacts_option(command: F) -> F:
    option = click.option(
        "--changed-artifacts",
        default=REPLACE,
        show_default=True,
        type=click.Choice([REPLACE, KEEP]),
        help="A new version under a key takes the place of the one in memory, or (as on SageMaker) that is kept until it is evicted.",
    )
    return option(command)


def url_option(command: F) -> F:
    option = click.option(
        "--url", default=DEFAULT_URL, show_default=True, envvar="FLATSHARE_URL", callback=_checked_url, help="Address of the server."
    )
    return option(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(command)


def print_json(value: object) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    sys.stdout.flush()
