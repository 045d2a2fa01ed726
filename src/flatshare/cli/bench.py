"""`flatshare bench`: measure a real server, print tables, write JSON."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flatshare.cli.options import console, errors
from flatshare.core.sizes import format_size

Steps = Callable[[str, int], Callable[[], None]]
"""Begin a step of so many parts; call the result after each part."""
_VENV = click.Path(path_type=Path, exists=True, file_okay=False)
_JSON_FILE = click.Path(path_type=Path, dir_okay=False, writable=True)
Measurement = Callable[[Path, Steps], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Frame:
    """What every benchmark has around it: where it works, how much it measures, where its figures go."""

    json_file: Path | None
    work: Path | None
    is_quick: bool

    def measure(
        self, name: str, disk_bytes: int, measurement: Measurement, targets: dict[str, float], *, at_least: Collection[str] = ()
    ) -> None:
        """Say what it runs on, run it, write the JSON and print the table."""
        from flatshare.bench import machine

        on = machine.describe()
        console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
        with _folder(self.work) as folder, steps() as begin:
            _require_disk(folder, disk_bytes)
            results = measurement(folder, begin)
        if self.json_file is not None:
            self.json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
        console.print(_table(results, targets, f"flatshare bench {name}", at_least=at_least))


def _say_if_without_copies() -> None:
    from flatshare.instance.backends import prepacked

    if not prepacked.is_available():
        console.print('OpenVINO is not installed, so prepacked copies are not measured: pip install "flatshare[prepacked]"')


def framed(quickly: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that all benchmarks have; `quickly` says how much less --quick measures."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here."
        )
        @click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
        @click.option("--quick", is_flag=True, help=f"{quickly}: to try it out, not to quote.")
        @wraps(command)
        def within(json_file: Path | None, work: Path | None, quick: bool, **others: Any) -> None:
            command(Frame(json_file, work, is_quick=quick), **others)

        return within

    return decorate


@click.group(short_help="Measure a real server.")
def bench() -> None:
    """Benchmarks start their own server on a free port of 127.0.0.1 and stop it. They need a quiet machine and some disk.

    \b
    Examples:
      flatshare bench demo --tenants 4 --quick            # the shortest: many models, every answer checked
      flatshare bench story --quick --json story.json     # the main job's figures, machine and all
    """


@bench.command()
@framed("A tenth of the samples")
def story(frame: Frame) -> None:
    """The main job: cold starts, latency, CPU and memory of 48 models, against the targets. Takes about five minutes and 8 GB of disk.

    \b
    Example:
      flatshare bench story --json story.json
    """
    from flatshare.bench.story import QUICK, TARGETS, Scale, run

    scale = QUICK if frame.is_quick else Scale()
    frame.measure("story", 8_000_000_000, lambda folder, begin: run(folder, scale, begin), TARGETS)


@bench.command()
@framed("A tenth of the samples")
def auth(frame: Frame) -> None:
    """What asking who calls costs: two servers, one that asks and one that does not, called in turns. Takes a minute and 1 GB of disk.

    \b
    Example:
      flatshare bench auth --json auth.json
    """
    from flatshare.bench.auth import TARGETS, run

    frame.measure("auth", 1_000_000_000, lambda folder, begin: run(folder, 200 if frame.is_quick else 2000, begin), TARGETS)


@bench.command()
@framed("A fifth of the time")
@click.option(
    "--only",
    default="",
    metavar="PARTS",
    help="Some of unload, neighbours, overload, thrash, limit, prepacked, peers; separated by commas.",
)
@click.option("--triton", type=_VENV, help="Measure memory on real Triton too: a virtual environment with nvidia-pytriton.")
@click.option("--mlserver", type=_VENV, help="The same of MLServer: one with mlserver, onnxruntime and tokenizers.")
def memory(frame: Frame, only: str, triton: Path | None, mlserver: Path | None) -> None:
    """Neighbours, floods, cold loads, overload, thrashing, and what memory comes back. Takes about half an hour and 22 GB of disk.

    \b
    Examples:
      flatshare bench memory --json memory.json
      flatshare bench memory --only unload,limit,peers --triton .venv-triton --mlserver .venv-mlserver
      flatshare bench memory --only neighbours,overload --work /tmp/bench      # kept: the next run imports nothing
    """
    from flatshare.bench.memory import AT_LEAST, PARTS, QUICK, TARGETS, Scale, run
    from flatshare.bench.memory_peers import Peers

    names, scale = [name.strip() for name in only.split(",") if name.strip()], QUICK if frame.is_quick else Scale()
    if unknown := set(names) - PARTS.keys():
        raise click.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(PARTS)}", param_hint="--only")
    if not names or "prepacked" in names:
        _say_if_without_copies()
    frame.measure(
        "memory",
        22_000_000_000,
        lambda folder, begin: run(folder, scale, begin, names, Peers(triton, mlserver)),
        TARGETS | AT_LEAST,
        at_least=AT_LEAST,
    )


@bench.command()
@click.argument("trace", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--requests",
    default=150_000,
    show_default=True,
    type=click.IntRange(10),
    help="How many of the trace's, at least; of bursty traffic half as many again.",
)
@click.option("--load-ms", default=200.0, show_default=True, help="What a load takes.")
@click.option("--json", "json_file", type=_JSON_FILE, help="Write the figures here.")
def replay(trace: Path, requests: int, load_ms: float, json_file: Path | None) -> None:
    """Recorded traffic through the policies: cold requests by LRU, by value and by who knows the future. Serves nothing; takes a minute.

    TRACE is an .npz file: names [clients], rate [clients, windows of ten minutes] in requests per second, cv of the same shape.

    \b
    Example:
      flatshare bench replay servegen_week1.npz --json replay.json
    """
    from flatshare.bench.replay import run
    from flatshare.core.errors import BadInput

    try:
        with steps() as begin:
            results = run(trace, requests, load_ms / 1e3, begin)
    except BadInput as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, {}, "flatshare bench replay"))


@bench.command()
@framed("A tenth of the runs")
def prepacked(frame: Frame) -> None:
    """Prepacked weights beside mapped ones: engines alone, by length of text, and two servers. Takes five minutes, 8 GB of disk.

    Copies need OpenVINO: pip install "flatshare[prepacked]".

    \b
    Example:
      flatshare bench prepacked
    """
    from flatshare.bench.prepacked import TARGETS, run

    def measure(folder: Path, begin: Steps) -> dict[str, float]:
        return run(folder, 20, 20 if frame.is_quick else 200, begin)

    _say_if_without_copies()
    frame.measure("prepacked", 8_000_000_000, measure, TARGETS, at_least=TARGETS)


@bench.command()
@framed("A tenth of the samples")
def protocols(frame: Frame) -> None:
    """What InvokeEndpoint, Open Inference over HTTP (JSON, binary) and gRPC add to the bare engine; and how long imports take.

    Takes three minutes and 6 GB of disk. NVIDIA's clients are measured too if tritonclient[grpc,http] is installed.

    \b
    Example:
      flatshare bench protocols --json protocols.json
    """
    from flatshare.bench.protocols import TARGETS, run

    calls, heads = (60, 100) if frame.is_quick else (600, 1000)
    frame.measure("protocols", 6_000_000_000, lambda folder, begin: run(folder, calls, heads, begin), TARGETS)


@bench.command()
@framed("A tenth of the samples")
def complete(frame: Frame) -> None:
    """Completions by models of T5-small's size, beside transformers in a process per model. Takes four minutes and 8 GB of disk.

    \b
    Example:
      flatshare bench complete --json complete.json
    """
    from flatshare.bench.complete import AT_LEAST, QUICK, TARGETS, Scale, run

    scale = QUICK if frame.is_quick else Scale()
    frame.measure("complete", 8_000_000_000, lambda folder, begin: run(folder, scale, begin), TARGETS, at_least=AT_LEAST)


@bench.command()
@click.option("--keep", is_flag=True, help="Leave the server up and say what to try.")
@click.option("--tenants", "tenant_count", default=24, show_default=True, type=click.IntRange(4, 500), help="Each has two target models.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--json", "json_file", type=_JSON_FILE, help="Write {machine, results} here.")
@click.option("--quick", is_flag=True, help="A fifth of the calls: to try it out, not to quote.")
def demo(keep: bool, tenant_count: int, work: Path | None, json_file: Path | None, quick: bool) -> None:
    """Many models behind one endpoint, called with boto3, every answer checked. Needs 6 GB of disk for two minutes.

    \b
    Examples:
      flatshare bench demo --json demo.json
      flatshare bench demo --tenants 4 --quick --keep
    """
    from flatshare.bench.demo import QUICK, Scale, figures, run
    from flatshare.bench.machine import describe
    from flatshare.cli import demo as show

    console.print(show.introduction(2 * tenant_count))
    with _folder(work, keep=keep) as folder:
        _require_disk(folder, 2 * tenant_count * 125_000_000)
        with steps() as begin:
            done = run(folder, tenant_count, QUICK if quick else Scale(), begin)
        console.print(show.tables(done.report))
        if json_file is not None:
            json_file.write_bytes(orjson.dumps({"machine": describe(), "results": figures(done.report)}, option=orjson.OPT_INDENT_2))
        if keep:
            click.echo(show.what_to_try(done))
        else:
            done.server.close()


@bench.command()
@framed("A few models and calls")
def control(frame: Frame) -> None:
    """The control plane with 5,000 models and 50 endpoints: calls, describes, a restart after it was killed, and what a signature costs.

    Takes four minutes; needs the weights that `make demo` installs, and 1 GB of disk.

    \b
    Example:
      flatshare bench control --json control.json
    """
    from flatshare.bench import auth
    from flatshare.bench.control import AT_LEAST, QUICK, TARGETS, Scale, run

    scale = QUICK if frame.is_quick else Scale()

    def measure(folder: Path, begin: Steps) -> dict[str, float]:
        return run(folder, scale, begin) | auth.run(folder / "auth", 200 if frame.is_quick else 2000, begin)

    frame.measure("control", 1_000_000_000, measure, TARGETS | auth.TARGETS, at_least=AT_LEAST)


@bench.command()
@framed("Fewer models and samples")
@click.option(
    "--triton-venv",
    "venv",
    default=".venv-triton",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Environment with nvidia-pytriton (make .stamps/triton).",
)
@click.option("--part", "parts", multiple=True, help="latency, memory, throughput, cold or hygiene; may be said again.  [default: all]")
def packages(frame: Frame, venv: Path, parts: tuple[str, ...]) -> None:
    """Models with Python code of their own, here and on real Triton, in turns: memory, cold start, latency, throughput.

    And what the host's hygiene brings to an untidy model. Twenty models of 292 MB: takes six minutes, 13 GB of disk and 16 GB of memory.

    \b
    Example:
      flatshare bench packages --json packages.json
      flatshare bench packages --work /tmp/packages --part throughput     # the folder keeps the models for the next part
    """
    from flatshare.bench.packages import AT_MOST, PARTS, QUICK, TARGETS, Scale, run
    from flatshare.bench.triton_peer import triton_files

    if triton_files(venv) is None:
        raise click.ClickException(f"no real Triton in {venv}: run `make .stamps/triton`, or say --triton-venv")
    if unknown := set(parts) - set(PARTS):
        raise click.UsageError(f"no part is called {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    scale = QUICK if frame.is_quick else Scale()
    frame.measure(
        "packages",
        scale.models * 650_000_000,
        lambda folder, begin: run(folder, venv.absolute(), scale, parts or PARTS, begin),
        TARGETS,
        at_least=TARGETS.keys() - AT_MOST,
    )


@bench.command(name="deploy")
@framed("A few packages and switches")
def bench_deploy(frame: Frame) -> None:
    """Packaging and deploying models of 90 MB, and 500 heads on one trunk; switches under load; what the API layer adds to boto3.

    Takes four minutes; needs the weights that `make demo` installs, and 3 GB of disk.

    \b
    Example:
      flatshare bench deploy --json deploy.json
    """
    from flatshare.bench.deploy import QUICK, TARGETS, Scale, run

    scale = QUICK if frame.is_quick else Scale()
    frame.measure("deploy", 3_000_000_000, lambda folder, begin: run(folder, scale, begin), TARGETS)


def _require_disk(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise click.ClickException(
            f"{folder} has {format_size(free)} free, this needs {format_size(needed_bytes)}: choose another folder with --work"
        )


def _table(results: dict[str, float], targets: dict[str, float], title: str, *, at_least: Collection[str] = ()) -> Table:
    table = Table("figure", "measured", "target", "", title=title)
    for key, value in results.items():
        target = targets.get(key)
        is_reached = target is not None and (value >= target if key in at_least else value <= target)
        verdict = "" if target is None else "[green]reached[/]" if is_reached else "[red]missed[/]"
        sign = "≥" if key in at_least else "≤"
        table.add_row(key, f"{value:g}", "" if target is None else f"{sign} {target:g}", verdict)
    return table


@contextmanager
def _folder(work: Path | None, *, keep: bool = False) -> Iterator[Path]:
    if work is not None or keep:
        kept = work or Path(tempfile.mkdtemp(prefix="flatshare-"))
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="flatshare-bench-") as temporary:
        yield Path(temporary)


@contextmanager
def steps() -> Iterator[Steps]:
    """A progress bar per step."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:

        def begin(name: str, parts: int) -> Callable[[], None]:
            task = progress.add_task(name, total=parts)
            return lambda: progress.advance(task)

        yield begin
