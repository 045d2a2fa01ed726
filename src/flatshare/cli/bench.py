"""`flatshare bench`: measure a real server, print tables, write JSON."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flatshare.cli.options import console, errors
from flatshare.core.sizes import format_size


@click.group(short_help="Measure a real server.")
def bench() -> None:
    """Benchmarks start their own server on a free port of 127.0.0.1 and stop it. They need a quiet machine and some disk."""


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A tenth of the samples: to try it out, not to quote.")
def story(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """The main job: cold starts, latency, CPU and memory of 48 models, against the targets. Takes about five minutes and 8 GB of disk.

    \b
    Example:
      flatshare bench story --json story.json
    """
    from flatshare.bench import machine
    from flatshare.bench.story import QUICK, TARGETS, Scale, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 8_000_000_000)
        results = run(folder, QUICK if quick else Scale(), begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench story"))


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A tenth of the samples: to try it out, not to quote.")
def auth(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """What asking who calls costs: two servers, one that asks and one that does not, called in turns. Takes a minute and 1 GB of disk.

    \b
    Example:
      flatshare bench auth --json auth.json
    """
    from flatshare.bench import machine
    from flatshare.bench.auth import TARGETS, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 1_000_000_000)
        results = run(folder, 200 if quick else 2000, begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench auth"))


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A fifth of the time: to try it out, not to quote.")
def memory(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """Neighbours, floods, cold loads, overload, thrashing, and what memory comes back. Takes about ten minutes and 14 GB of disk.

    \b
    Example:
      flatshare bench memory --json memory.json
    """
    from flatshare.bench import machine
    from flatshare.bench.memory import AT_LEAST, QUICK, TARGETS, Scale, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 14_000_000_000)
        results = run(folder, QUICK if quick else Scale(), begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS | AT_LEAST, "flatshare bench memory", at_least=AT_LEAST))


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A tenth of the samples: to try it out, not to quote.")
def protocols(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """What InvokeEndpoint, Open Inference over HTTP (JSON, binary) and gRPC add to the bare engine; and how long imports take.

    Takes three minutes and 6 GB of disk. NVIDIA's clients are measured too if tritonclient[grpc,http] is installed.

    \b
    Example:
      flatshare bench protocols --json protocols.json
    """
    from flatshare.bench import machine
    from flatshare.bench.protocols import TARGETS, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 6_000_000_000)
        results = run(folder, 60 if quick else 600, 100 if quick else 1000, begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench protocols"))


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A tenth of the samples: to try it out, not to quote.")
def complete(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """Completions by models of T5-small's size, beside transformers in a process per model. Takes four minutes and 8 GB of disk.

    \b
    Example:
      flatshare bench complete --json complete.json
    """
    from flatshare.bench import machine
    from flatshare.bench.complete import AT_LEAST, QUICK, TARGETS, Scale, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 8_000_000_000)
        results = run(folder, QUICK if quick else Scale(), begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench complete", at_least=AT_LEAST))


@bench.command()
@click.option("--keep", is_flag=True, help="Leave the server up and say what to try.")
@click.option("--tenants", "tenant_count", default=24, show_default=True, type=click.IntRange(2, 500), help="Each has two target models.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
def demo(keep: bool, tenant_count: int, work: Path | None) -> None:
    """Many models behind one endpoint, called with boto3, every answer checked. Needs 6 GB of disk for two minutes.

    \b
    Example:
      flatshare bench demo --keep
    """
    from flatshare.bench.demo import run
    from flatshare.cli import demo as show

    console.print(show.introduction(2 * tenant_count))
    with _folder(work, keep=keep) as folder:
        _require_disk(folder, 2 * tenant_count * 125_000_000)
        with steps() as begin:
            done = run(folder, tenant_count, begin)
        console.print(show.tables(done.report))
        if keep:
            click.echo(show.what_to_try(done))
        else:
            done.server.close()


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A few models and calls: to try it out, not to quote.")
def control(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """The control plane with 5,000 models and 50 endpoints: calls, describes, a restart after it was killed, and what a signature costs.

    Takes four minutes; needs the weights that `make demo` installs, and 1 GB of disk.

    \b
    Example:
      flatshare bench control --json control.json
    """
    from flatshare.bench import auth, machine
    from flatshare.bench.control import AT_LEAST, QUICK, TARGETS, Scale, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 1_000_000_000)
        results = run(folder, QUICK if quick else Scale(), begin)
        results |= auth.run(folder / "auth", 200 if quick else 2000, begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS | auth.TARGETS, "flatshare bench control", at_least=AT_LEAST))


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option(
    "--triton-venv",
    "venv",
    default=".venv-triton",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Environment with nvidia-pytriton (make .stamps/triton).",
)
@click.option("--quick", is_flag=True, help="Fewer models and samples: to try it out, not to quote.")
def packages(json_file: Path | None, work: Path | None, venv: Path, quick: bool) -> None:
    """Models with Python code of their own, here and on real Triton, in turns: memory, cold start, latency, throughput.

    Twenty models of 292 MB: takes ten minutes, 13 GB of disk and 16 GB of memory.

    \b
    Example:
      flatshare bench packages --json packages.json
    """
    from flatshare.bench import machine
    from flatshare.bench.packages import AT_MOST, QUICK, TARGETS, Scale, run
    from flatshare.bench.triton_peer import triton_files

    if triton_files(venv) is None:
        raise click.ClickException(f"no real Triton in {venv}: run `make .stamps/triton`, or say --triton-venv")
    on, scale = machine.describe(), QUICK if quick else Scale()
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, scale.models * 650_000_000)
        results = run(folder, venv.absolute(), scale, begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench packages", at_least=TARGETS.keys() - AT_MOST))


@bench.command(name="deploy")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), help="Write {machine, results} here.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder to work in; kept. Default: a temporary one.")
@click.option("--quick", is_flag=True, help="A few packages and switches: to try it out, not to quote.")
def bench_deploy(json_file: Path | None, work: Path | None, quick: bool) -> None:
    """Packaging and deploying models of 90 MB, switching versions under load, and what the API layer adds to boto3.

    Takes two minutes; needs the weights that `make demo` installs, and 3 GB of disk.

    \b
    Example:
      flatshare bench deploy --json deploy.json
    """
    from flatshare.bench import machine
    from flatshare.bench.deploy import QUICK, TARGETS, Scale, run

    on = machine.describe()
    console.print("  ".join(f"{key} {value}" for key, value in on.items()), style="dim")
    with _folder(work) as folder, steps() as begin:
        _require_disk(folder, 3_000_000_000)
        results = run(folder, QUICK if quick else Scale(), begin)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps({"machine": on, "results": results}, option=orjson.OPT_INDENT_2))
    console.print(_table(results, TARGETS, "flatshare bench deploy"))


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
def steps() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """A progress bar per step."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:

        def begin(name: str, parts: int) -> Callable[[], None]:
            task = progress.add_task(name, total=parts)
            return lambda: progress.advance(task)

        yield begin
