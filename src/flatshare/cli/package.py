"""`flatshare package` and `flatshare code`: make a package of a model, and version the code that goes into it."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from flatshare.cli import published
from flatshare.cli.options import console, errors, json_option, print_json
from flatshare.core.sizes import format_size

_DEFAULT_CODE = "file://./code"


def _show_layouts(context: click.Context, _: click.Parameter, is_asked: bool) -> None:  # click's signature
    from flatshare.package.layout import read_layout, shipped

    if not is_asked:
        return
    for layout in map(read_layout, shipped()):
        takes = [f"{part.name}=PATH" for part in layout.parts if part.name] or ["PATH"]
        takes += [f"--set {name}={variable.default or '…'}" for name, variable in layout.variables.items()]
        takes += ["--code NAME"] if layout.needs_code else []
        console.print(f"[bold]{layout.layout}[/] ({layout.kind}): {escape(' '.join(takes))}\n  {layout.description}")
    context.exit()


@click.command(short_help="Make a package of a model.")
@click.argument("model", required=False)
@click.argument("sources", nargs=-1)
@click.option("--layout", required=True, help="A shipped layout by name, or a .yaml file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A variable of the layout. May be given several times.")
@click.option("--code", metavar="NAME[@VERSION[#SHA256]]", help="Inference code that was pushed. Default version: latest.")
@click.option("--code-store", default=_DEFAULT_CODE, show_default=True, envvar="FLATSHARE_CODE", help="Where the versions of code lie.")
@click.option(
    "--form",
    default="folder",
    show_default=True,
    type=click.Choice(["folder", "tar", "tar.gz", "packs"]),
    help="SageMaker takes tar.gz; packs is the store's own form.",
)
@click.option(
    "--trunk",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --form packs: the checkpoint that it was trained from. Its tensors are referred to; they lie once beside the packages.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the package. Default: TENANT-NAME.package")
@click.option(
    "--batch",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .csv, .yaml or .jsonl file of models and sources, instead of MODEL. --out is the folder of the packages then.",
)
@click.option(
    "--layouts",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_layouts,
    help="List the shipped layouts and what each takes.",
)
@json_option
def package(model: str | None, sources: tuple[str, ...], batch: Path | None, as_json: bool, **asked: Any) -> None:
    """Put a model's files together by a layout, have a real instance load it and answer the layout's sample, and publish what passed.

    MODEL is TENANT/NAME. SOURCES are folders: one, or NAME=PATH for each that the layout names. The same input gives the same digest.

    \b
    Examples:
      flatshare package acme/embedding ./checkpoint --layout encoder
      flatshare package acme/embedding query=./q document=./d --layout two-encoders --form tar.gz
      flatshare package acme/intent ./tuned --layout classifier --form packs --trunk ./base
      flatshare package --batch models.csv --layout classifier --form packs --trunk ./base --out packages
      flatshare package --layouts
    """
    from flatshare.release.packaging import PackageRequest, make_package

    if (model is None) == (batch is None):
        raise click.UsageError("name a MODEL as TENANT/NAME, or give --batch FILE")
    values, store = dict(map(_setting, asked.pop("settings"))), _absolute(asked.pop("code_store"))
    request = PackageRequest(model or "", sources=dict(map(_pair, sources)), settings=values, code_store=store, **asked)
    if batch is not None:
        _package_all(batch, request, as_json=as_json)
        return
    made = make_package(request)
    if as_json:
        import msgspec

        print_json({"package": str(made.folder), **msgspec.to_builtins(made.record)})
        return
    record = made.record
    size = format_size(sum(part.size_bytes for part in record.parts))
    console.print(f"[bold]{escape(str(made.folder))}[/]: {record.model}, {record.kind}, {size}, digest {record.digest[:12]}")
    for part in record.parts:
        console.print(f"  {part.artifact}: answered its sample; weights {record.answered_as[part.name][:12]}")


def _package_all(batch: Path, like: Any, *, as_json: bool) -> None:
    """Each model of the file, and a list of those that passed, for `flatshare deploy --batch`."""
    from rich.progress import track

    from flatshare.core.errors import FlatshareError
    from flatshare.release.batch import read_requests
    from flatshare.release.packaging import make_packages

    requests = read_requests(batch, like)
    is_shown = errors.is_terminal and not as_json
    results = list(track(make_packages(requests), "packaging", total=len(requests), console=errors, disable=not is_shown))
    made = [result for result in results if not isinstance(result, FlatshareError)]
    failed = {r.model: str(error) for r, error in zip(requests, results, strict=True) if isinstance(error, FlatshareError)}
    listed = (like.out or Path()) / "packages.csv"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{line}\n" for line in ("package", *(package.folder.name for package in made))))
    if as_json:
        done = {package.record.model: {"package": str(package.folder), "digest": package.record.digest} for package in made}
        print_json({"packages": done, "failed": failed, "list": str(listed)})
    else:
        for model, sentence in list(failed.items())[:20]:
            console.print(f"  {model}: [red]{escape(sentence)}[/]")
        console.print(f"{len(made)} of {len(requests)} packaged: flatshare deploy --batch {escape(str(listed))}", soft_wrap=True)
    if failed:
        raise SystemExit(1)


@click.group(short_help="Version inference code, and say what may run.")
def code() -> None:
    """Inference code in a store, immutable: a version means the same files for ever. And what of it a server may run.

    \b
    Examples:
      flatshare code push tagger ./tagger
      flatshare package acme/tags ./weights --layout python --code tagger@1
      flatshare code publish acme-tags.package
    """


for command in (published.publish, published.published, published.revoke):
    code.add_command(command)


def _store_option(command: Any) -> Any:
    return click.option("--store", default=_DEFAULT_CODE, show_default=True, envvar="FLATSHARE_CODE", help="Where the versions lie.")(
        command
    )


@code.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--version", help="Default: the next number.")
@_store_option
@json_option
def push(name: str, folder: Path, version: str | None, store: str, as_json: bool) -> None:
    """Store a folder as a version. The same files again change nothing; other files under an old version are refused.

    \b
    Example:
      flatshare code push tagger ./tagger --version 1.2.0
    """
    _show_versions([_shelf(store).push(name, folder, version)], as_json=as_json)


@code.command(name="list")
@click.argument("name", default="")
@_store_option
@json_option
def list_code(name: str, store: str, as_json: bool) -> None:
    """List versions, the newest last.

    \b
    Example:
      flatshare code list tagger
    """
    _show_versions(_shelf(store).list(name), as_json=as_json)


@code.command()
@click.argument("name")
@click.option("--version", default="latest", show_default=True)
@_store_option
@json_option
def show(name: str, version: str, store: str, as_json: bool) -> None:
    """Show one version: digest and files, after checking that they are what was pushed.

    \b
    Example:
      flatshare code show tagger --version 1.2.0
    """
    found = _shelf(store).get(name, version)
    _show_versions([found.version], as_json=as_json)
    if not as_json:
        for path in found.version.files:
            console.print(f"  {escape(path)}")


def _show_versions(versions: list[Any], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json([msgspec.to_builtins(version) for version in versions])
        return
    for version in versions:
        console.print(
            f"{version.name}@{version.version}  {version.sha256[:12]}  {len(version.files)} files, {format_size(version.size_bytes)}"
        )


def _shelf(store: str) -> Any:
    from flatshare.store.code import CodeShelf

    return CodeShelf(_absolute(store))


def _absolute(uri: str) -> str:
    """`file://./code` as people write it."""
    return f"file://{Path(uri.removeprefix('file://')).absolute()}" if uri.startswith("file://") else uri


def _pair(source: str) -> tuple[str, Path]:
    name, separator, path = source.partition("=")
    return (name, Path(path)) if separator and "/" not in name else ("", Path(source))


def _setting(setting: str) -> tuple[str, str]:
    name, separator, value = setting.partition("=")
    if not separator:
        raise click.UsageError(f"--set {setting}: write it as NAME=VALUE")
    return name, value
