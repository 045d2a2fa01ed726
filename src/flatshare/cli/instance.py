"""`flatshare instance`: one instance, on a Unix socket for the fleet driver, or on a port as the container of a SageMaker endpoint."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from flatshare.cli.options import SIZE, changed_artifacts_option, cores, settings_option
from flatshare.core.settings import KEEP, InstanceSettings, Listening, SharingSettings, WorkerSettings


@click.command(short_help="Run one instance: for the fleet, or as a SageMaker container.")
@click.option("--socket", "socket_path", help="Unix socket to listen on, instead of a port.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    envvar="SAGEMAKER_BIND_TO_PORT",
    show_envvar=True,
    type=click.IntRange(0, 65535),
    help="TCP port to listen on; 0 takes a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; a container needs 0.0.0.0.")
@click.option("--model", "model_dir", type=click.Path(path_type=Path), help="Model that POST /invocations calls, such as /opt/ml/model.")
@click.option(
    "--store",
    "store_dir",
    default=lambda: Path(tempfile.gettempdir(), "flatshare-store"),
    show_default="below the system's temporary folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the tensor store.",
)
@click.option("--memory", "memory_bytes", default="2GiB", show_default=True, type=SIZE, help="Memory budget: private and mapped together.")
@click.option("--disk", "disk_bytes", default="50GiB", show_default=True, type=SIZE, help="Disk budget of the tensor store.")
@click.option(
    "--workers",
    default=cores,
    show_default="the cores, at most 8",
    type=click.IntRange(1, 256),
    help="Engine threads, and most worker processes of a code version.",
)
@click.option(
    "--model-timeout",
    "run_s",
    default=55.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds that a model's own code may take.",
)
@click.option(
    "--load-timeout", "load_s", default=300.0, show_default=True, type=click.FloatRange(0.1), help="Seconds that it may take to load."
)
@click.option("--tidy/--no-tidy", "is_tidy", default=True, show_default=True, help="Gradients off, garbage collected, memory given back.")
@click.option("--spare/--no-spare", "has_spare", default=True, show_default=True, help="Keep a worker process started ahead.")
@click.option(
    "--published-code",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Run models' Python code only if this file has its digest: see 'flatshare code publish'. Default: any runs.",
)
@settings_option
@changed_artifacts_option
@click.option("--follow-stdin", is_flag=True, help="Stop when stdin ends: the parent is gone.")
@click.option("--json-logs", is_flag=True, help="Log as JSON lines.")
@click.option("--id", "instance_id", default="local", help="Id of this instance, for logs.")
@click.option("--name", default="", help="Endpoint and variant that it serves, for logs.")
@click.option("--template", "is_template", is_flag=True, hidden=True, help="Fork instances for the fleet driver, which is at stdin.")
def instance(*, json_logs: bool, instance_id: str, name: str, is_template: bool, **options: Any) -> None:
    """Serve models by the SageMaker multi-model container contract: checkpoints and Triton repositories, loaded by POST /models.

    \b
    Example:
      flatshare instance --port 8080 --memory 1GiB
      curl -X POST http://127.0.0.1:8080/models -d '{"model_name": "m1", "url": "/opt/ml/models/m1/model"}'
      curl -X POST http://127.0.0.1:8080/models/m1/invoke -H 'Content-Type: application/json' -d @request.json
    """
    if is_template:
        from flatshare.cli.template import fork_instances

        fork_instances(lambda arguments: instance.main(arguments, "flatshare instance"))
        return
    import structlog
    import uvloop

    from flatshare.instance.process import raise_descriptor_limit, serve_until_stopped
    from flatshare.telemetry import log

    log.configure(json=json_logs)
    structlog.contextvars.bind_contextvars(instance=instance_id, serves=name)
    raise_descriptor_limit()
    chosen = InstanceOptions(name=name, **options)
    uvloop.run(serve_until_stopped(chosen.settings, chosen.own_code, chosen.listening, chosen.model_dir))


@dataclass(frozen=True, slots=True)
class InstanceOptions:
    """What an operator or the fleet chose, by the names of the options."""

    socket_path: str | None
    port: int
    host: str
    model_dir: Path | None
    store_dir: Path
    memory_bytes: int
    disk_bytes: int
    workers: int
    changed_artifacts: str
    sharing: tuple[Path, SharingSettings] | None
    name: str
    run_s: float
    load_s: float
    is_tidy: bool
    has_spare: bool
    published_code: Path | None
    follow_stdin: bool

    @property
    def settings(self) -> InstanceSettings:
        settings = InstanceSettings(
            store_dir=self.store_dir, memory_bytes=self.memory_bytes, disk_bytes=self.disk_bytes, workers=self.workers,
            sharing=self.sharing[1] if self.sharing else SharingSettings(), name=self.name,
        )  # fmt: skip
        return replace(settings, recheck_s=math.inf) if self.changed_artifacts == KEEP else settings

    @property
    def own_code(self) -> WorkerSettings:
        return WorkerSettings(
            most=self.workers,
            load_s=self.load_s,
            run_s=self.run_s,
            private_bytes=self.memory_bytes,
            has_spare=self.has_spare,
            is_tidy=self.is_tidy,
            published_code=self.published_code,
        )

    @property
    def listening(self) -> Listening:
        return Listening(self.socket_path, self.host, self.port, follow_stdin=self.follow_stdin)
