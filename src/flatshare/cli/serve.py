"""`flatshare serve`: everything on one port, until a signal."""

import errno
import fcntl
import ipaddress
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape

from flatshare.cli.options import SIZE, cores, errors, json_option, print_json, settings_option, url_option
from flatshare.client.aws import environment
from flatshare.core.settings import SharingSettings
from flatshare.core.sizes import format_size


@click.command(short_help="Start the server: gateway, control plane, instances.")
@click.option(
    "--data", "data_dir", default="data", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of all state."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option(
    "--memory", "memory_bytes", default="2GiB", show_default=True, type=SIZE, help="What all instances may take: private and mapped."
)
@click.option("--disk", "disk_bytes", default="50GiB", show_default=True, type=SIZE, help="What imported models may take on disk.")
@click.option(
    "--workers", default=cores, show_default="the cores, at most 8", type=click.IntRange(1, 256), help="Engine threads of each instance."
)
@settings_option
@click.option("--region", default="us-east-1", show_default=True, help="Region that the ARNs name.")
@click.option("--insecure", is_flag=True, help="Listen on other than loopback addresses although calls are not authenticated.")
@click.option("--json-logs", is_flag=True, help="Log as JSON lines.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]))
@json_option
def serve(
    data_dir: Path,
    host: str,
    port: int,
    memory_bytes: int,
    disk_bytes: int,
    workers: int,
    sharing: tuple[Path, SharingSettings] | None,
    region: str,
    insecure: bool,
    json_logs: bool,
    log_level: str,
    as_json: bool,
) -> None:
    """Serve the SageMaker control plane and runtime, metrics and status on one port.

    Endpoints and imported models survive a restart; Ctrl-C or SIGTERM answers what is under way and stops.

    \b
    Examples:
      flatshare serve                                  everything below ./data, 2 GiB, port 8080
      flatshare serve --memory 8GiB --port 9000
      flatshare serve --settings flatshare.toml        pins, shares of tenants, deadlines: docs/operations.md
      eval "$(flatshare env)"                          then AWS clients talk to it
    """
    if not insecure:
        _require_loopback(host)
    from flatshare import build
    from flatshare.telemetry import log

    log.configure(json=json_logs, level=log_level)
    _lock(data_dir)
    share = {"memory_bytes": memory_bytes, "disk_bytes": disk_bytes, "workers": workers}
    path = sharing[0] if sharing else None
    settings = build.settings_for(
        data_dir.absolute(), host=host, port=port, **share, has_json_logs=json_logs, region=region, settings_path=path
    )
    with _port_in_use_explained(host, port):
        build.run(settings, lambda port: _greet(host, port, memory_bytes, data_dir, as_json=as_json))


@contextmanager
def _port_in_use_explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise click.ClickException(f"port {port} of {host} is in use: choose another with --port, or 0 for a free one") from error


def _lock(data_dir: Path) -> None:
    """One server per data folder, or two control planes would start and stop the same instances. The kernel unlocks when we end."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by the instances
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise click.ClickException(
            f"another server runs over {data_dir}: stop it, or give this one a folder of its own with --data"
        ) from None


def _greet(host: str, port: int, memory_bytes: int, data_dir: Path, *, as_json: bool) -> None:
    url = f"http://{host}:{port}"
    if as_json:
        print_json({"url": url, "pid": os.getpid(), "data": str(data_dir)})
        return
    errors.print(
        f"[bold]flatshare[/] serves on [bold]{url}[/] with {format_size(memory_bytes)} of memory; state in {escape(str(data_dir))}"
    )
    if sys.stderr.isatty():
        errors.print(f'[dim]eval "$(flatshare env --url {url})" points AWS clients here; Ctrl-C stops[/]')


def _require_loopback(host: str) -> None:
    if not _is_loopback(host):
        raise click.UsageError(
            f"calls are not authenticated yet, so {host} would be open to everybody: listen on 127.0.0.1, or say --insecure"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.command(short_help="Print the variables that point AWS clients here.")
@url_option
@click.option("--shell", default="sh", show_default=True, type=click.Choice(["sh", "fish", "dotenv"]), help="Syntax to print.")
@json_option
def env(url: str, shell: str, as_json: bool) -> None:
    """Print the endpoint variables with which boto3, the AWS CLI and the SDKs talk to flatshare, while S3 and STS keep their own addresses.

    \b
    Examples:
      eval "$(flatshare env)"
      flatshare env --shell dotenv > .env
    """
    variables = environment(url)
    if as_json:
        print_json(variables)
        return
    form = {"sh": "export {}={}", "fish": "set -gx {} {}", "dotenv": "{}={}"}[shell]
    for name, value in variables.items():
        click.echo(form.format(name, shlex.quote(value)))
