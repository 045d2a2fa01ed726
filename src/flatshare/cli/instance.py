"""`flatshare instance`: one instance on a Unix socket. The fleet driver starts it; people seldom do."""

import math
from dataclasses import replace
from pathlib import Path

import click

from flatshare.cli.options import SIZE, changed_artifacts_option, cores


@click.command(short_help="Run one instance (the fleet starts these).")
@click.option("--socket", "socket_path", required=True, help="Unix socket to listen on.")
@click.option("--store", "store_dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the tensor store.")
@click.option("--memory", "memory_bytes", default="2GiB", show_default=True, type=SIZE, help="Memory budget: private and mapped together.")
@click.option("--disk", "disk_bytes", default="50GiB", show_default=True, type=SIZE, help="Disk budget of the tensor store.")
@click.option("--workers", default=cores, show_default="the cores, at most 8", type=click.IntRange(1, 256), help="Engine threads.")
@changed_artifacts_option
@click.option("--follow-stdin", is_flag=True, help="Stop when stdin ends: the parent is gone.")
@click.option("--json-logs", is_flag=True, help="Log as JSON lines.")
@click.option("--id", "instance_id", default="local", help="Id of this instance, for logs.")
@click.option("--name", default="", help="Endpoint and variant that it serves, for logs.")
def instance(
    socket_path: str,
    store_dir: Path,
    memory_bytes: int,
    disk_bytes: int,
    workers: int,
    changed_artifacts: str,
    follow_stdin: bool,
    json_logs: bool,
    instance_id: str,
    name: str,
) -> None:
    """Serve models by the SageMaker multi-model container contract.

    \b
    Example:
      flatshare instance --socket /tmp/i.sock --store ./store --memory 1GiB
      curl --unix-socket /tmp/i.sock http://x/ping
    """
    import structlog
    import uvloop

    from flatshare.core.settings import KEEP, InstanceSettings
    from flatshare.instance.process import raise_descriptor_limit, serve_until_stopped
    from flatshare.telemetry import log

    log.configure(json=json_logs)
    structlog.contextvars.bind_contextvars(instance=instance_id, serves=name)
    raise_descriptor_limit()
    settings = InstanceSettings(store_dir=store_dir, memory_bytes=memory_bytes, disk_bytes=disk_bytes, workers=workers)
    if changed_artifacts == KEEP:
        settings = replace(settings, recheck_s=math.inf)
    uvloop.run(serve_until_stopped(settings, socket_path, follow_stdin=follow_stdin))
