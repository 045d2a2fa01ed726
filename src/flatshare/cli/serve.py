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
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from flatshare.cli.options import SIZE, changed_artifacts_option, cores, errors, json_option, print_json, settings_option, url_option
from flatshare.client.aws import environment
from flatshare.core.errors import IncompatibleState
from flatshare.core.sizes import format_size
from flatshare.serving.limits import default_memory_bytes

if TYPE_CHECKING:
    from flatshare.build import Listening, ServeOptions


@click.command(short_help="Start the server: gateway, control plane, instances.")
@click.option(
    "--data", "data_dir", default="data", show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of all state."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    show_default="8001, or a free one if --port is 0",
    help="Port of the Open Inference Protocol over gRPC; 0 takes a free one.",
)
@click.option("--no-grpc", is_flag=True, help="Serve no gRPC.")
@click.option(
    "--memory",
    "memory_bytes",
    default=default_memory_bytes,
    show_default="half of the machine's, or 3/4 of the container's less 192 MiB",
    type=SIZE,
    help="What all instances may take: private and mapped.",
)
@click.option("--disk", "disk_bytes", default="50GiB", show_default=True, type=SIZE, help="What imported models may take on disk.")
@click.option(
    "--workers", default=cores, show_default="the cores, at most 8", type=click.IntRange(1, 256), help="Engine threads of each instance."
)
@settings_option
@click.option(
    "--max-instances", default=16, show_default=True, type=click.IntRange(1, 1000), help="Instances that all endpoints may have together."
)
@click.option(
    "--database",
    "database_url",
    envvar="FLATSHARE_DATABASE_URL",
    show_default="control.db below --data",
    help="Where endpoints are kept: postgresql://user@host/name, which needs the extra 'postgres'. The variable hides a password from ps.",
)
@click.option("--region", default="us-east-1", show_default=True, help="Region that the ARNs name.")
@click.option(
    "--auth",
    default="none",
    show_default=True,
    type=click.Choice(["none", "sigv4", "bearer"]),
    help="What callers must show: nothing; a signature as AWS's SDKs make it; a bearer token or a signature. See 'flatshare keys'.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Certificate chain (PEM): serve HTTPS.")
@click.option("--tls-key", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Its key (PEM). SIGHUP reads both anew.")
@click.option("--insecure", is_flag=True, help="Listen on other than loopback addresses although calls are not authenticated.")
@click.option(
    "--model-code",
    type=click.Choice(["published", "any"]),
    show_default="published, or any if --auth is none",
    help="Which Python code of models runs: what 'flatshare code publish' has admitted, or whatever lies below the endpoints' prefixes.",
)
@changed_artifacts_option
@click.option("--json-logs", is_flag=True, help="Log as JSON lines.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]))
@json_option
def serve(*, insecure: bool, log_level: str, as_json: bool, **options: Any) -> None:
    """Serve SageMaker's control plane and runtime, Open Inference v2, metrics and status on one port, Open Inference over gRPC on another.

    Endpoints and imported models survive a restart; Ctrl-C or SIGTERM answers what is under way and stops.

    \b
    Examples:
      flatshare serve                                  everything below ./data, port 8080, gRPC on 8001
      flatshare serve --memory 8GiB --port 9000
      flatshare serve --settings flatshare.toml        pins, shares of tenants, deadlines: docs/operations.md
      flatshare serve --host 0.0.0.0 --auth sigv4 --tls-cert cert.pem --tls-key key.pem
      eval "$(flatshare env)"                          then AWS clients talk to it
    """
    from flatshare import build
    from flatshare.telemetry import log

    chosen = build.ServeOptions(**options)
    log.configure(json=chosen.json_logs, level=log_level)
    _require_protection(chosen, insecure=insecure)
    if chosen.runs_any_code:
        _warn(
            chosen,
            "any_code_runs",
            "whoever may write below an endpoint's prefix may run Python code here: "
            "--model-code published runs what an operator has admitted",
        )
    _lock(chosen.data_dir)
    with _start_explained(chosen.host, chosen.port):
        build.run(
            build.settings_for(chosen),
            lambda listening: _greet(chosen, listening, as_json=as_json),
        )


@contextmanager
def _start_explained(host: str, port: int) -> Iterator[None]:
    """What an operator can put right is told in a sentence."""
    try:
        yield
    except IncompatibleState as error:
        raise click.ClickException(str(error)) from error
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


def _greet(chosen: "ServeOptions", listening: "Listening", *, as_json: bool) -> None:
    url = f"{chosen.scheme}://{chosen.host}:{listening.port}"
    grpc = None if listening.grpc_port is None else f"{chosen.host}:{listening.grpc_port}"
    if as_json:
        print_json({"url": url, "grpc": grpc, "pid": os.getpid(), "data": str(chosen.data_dir)})
        return
    if chosen.json_logs:
        from flatshare.telemetry.log import get_logger

        get_logger("serve").info("serving", url=url, grpc=grpc, memory_bytes=chosen.memory_bytes, data=str(chosen.data_dir))
        return
    spoken = "" if grpc is None else f", gRPC on {grpc},"
    room, folder = format_size(chosen.memory_bytes), escape(str(chosen.data_dir))
    errors.print(f"[bold]flatshare[/] serves on [bold]{url}[/]{spoken} with {room} of memory; state in {folder}")
    if sys.stderr.isatty():
        errors.print(f'[dim]eval "$(flatshare env --url {url})" points AWS clients here; Ctrl-C stops[/]')


def _warn(chosen: "ServeOptions", event: str, sentence: str) -> None:
    """On the terminal, or as a line of the log where each has to be JSON."""
    if chosen.json_logs:
        from flatshare.telemetry.log import get_logger

        get_logger("serve").warning(event, reason=sentence)
    else:
        errors.print(f"[yellow]warning:[/] {escape(sentence)}", soft_wrap=True)


def _require_protection(chosen: "ServeOptions", *, insecure: bool) -> None:
    """Beyond this machine nobody is served unknown, unless the operator insists."""
    if (chosen.tls_cert is None) != (chosen.tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together: give both, or neither")
    if _is_loopback(chosen.host):
        return
    if chosen.auth == "none" and not insecure:
        raise click.UsageError(
            f"without authentication {chosen.host} would be open to everybody: say --auth sigv4 (and see 'flatshare keys create'), "
            "listen on 127.0.0.1, or insist with --insecure"
        )
    if chosen.tls_cert is None:
        what = "tokens and bodies" if chosen.auth == "bearer" else "bodies"
        _warn(chosen, "no_tls", f"without --tls-cert and --tls-key, {what} travel readable to and from {chosen.host}")


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
