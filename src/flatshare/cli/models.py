"""`flatshare models`: what lies in the tensor store of this machine."""

import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, errors, json_option, print_json
from flatshare.core.ids import ArtifactUri
from flatshare.core.sizes import format_size


def _data_option(command: Any) -> Any:
    path = click.Path(path_type=Path, file_okay=False, exists=True)
    return click.option("--data", "data_dir", default="data", show_default=True, type=path, help="The server's data folder.")(command)


def _store(data_dir: Path) -> Any:
    from flatshare.store.tensors import TensorStore

    folder = data_dir / "store"
    if not folder.is_dir():
        raise click.ClickException(f"{data_dir} holds no tensor store: give the folder that 'flatshare serve --data' was given")
    return TensorStore(folder)


@click.group(short_help="Look into the tensor store.")
def models() -> None:
    """The models that this machine has imported: list them, weigh them, verify and clean up. Works beside a running server.

    \b
    Examples:
      flatshare models list
      flatshare models du --data data
    """


@models.command(name="list")
@_data_option
@json_option
def list_models(data_dir: Path, as_json: bool) -> None:
    """List the imported models.

    \b
    Example:
      flatshare models list --data data
    """
    found = _store(data_dir).catalog.models()
    if as_json:
        print_json([_as_record(model) for model in found])
        return
    table = Table("artifact", "digest", "family", "task", "width", "max tokens", "weights", "loaded", "notes")
    for model in found:
        manifest = model.manifest
        ago = f"{(time.time() - model.used_s) / 60:.0f} min ago"
        table.add_row(
            escape("\n".join(model.uris)) or "-", manifest.digest[:12], manifest.family, str(manifest.task), str(manifest.width),
            str(manifest.max_tokens), format_size(manifest.mapped_bytes), ago, escape("; ".join(manifest.notes)),
        )  # fmt: skip
    console.print(table)


@models.command()
@_data_option
@json_option
def du(data_dir: Path, as_json: bool) -> None:
    """Show what the models weigh: as if each stood alone, each tensor once, and what sharing saves.

    \b
    Example:
      flatshare models du --data data
    """
    usage = _store(data_dir).usage()
    if as_json:
        shares = {"saved_bytes": usage.saved_bytes, "distinct_share": round(usage.distinct_share, 4)}
        print_json({name: getattr(usage, name) for name in usage.__slots__} | shares)
        return
    table = Table("", "bytes", "", title=f"{usage.models} models in {usage.packs} packs", show_header=False)
    table.add_row("sum", f"{usage.sum_bytes:,}", "as if each model stood alone")
    table.add_row("distinct", f"{usage.distinct_bytes:,}", f"each tensor once: {usage.distinct_share:.1%} of the sum")
    table.add_row("saved", f"{usage.saved_bytes:,}", format_size(usage.saved_bytes))
    table.add_row("on disk", f"{usage.pack_bytes + usage.blob_bytes:,}", "packs, graphs and tokenizers")
    console.print(table)


@models.command()
@click.argument("artifact_uri")
@_data_option
@json_option
def forget(artifact_uri: str, data_dir: Path, as_json: bool) -> None:
    """Forget an artifact; `collect` frees its space. It is imported anew when somebody calls it.

    \b
    Example:
      flatshare models forget file:///models/embeddings/acme/query
    """
    if not _store(data_dir).catalog.forget_artifact(ArtifactUri(artifact_uri)):
        raise click.ClickException(f"{artifact_uri} is not known here: see flatshare models list")
    if as_json:
        print_json({"forgotten": artifact_uri})


@models.command()
@_data_option
@json_option
def collect(data_dir: Path, as_json: bool) -> None:
    """Delete models that no artifact names, and tensors that no model uses.

    \b
    Example:
      flatshare models collect --data data
    """
    report = _store(data_dir).collect()
    if as_json:
        print_json({name: getattr(report, name) for name in report.__slots__})
    else:
        console.print(f"{report.models} models and {report.tensors} tensors deleted, {format_size(report.freed_bytes)} freed")


@models.command()
@_data_option
@click.option("--repair", is_flag=True, help="Forget models with damaged tensors, so that they are imported anew.")
@json_option
def verify(data_dir: Path, repair: bool, as_json: bool) -> None:
    """Hash every tensor again and compare. Exit status 1 if something is damaged and was not repaired.

    \b
    Example:
      flatshare models verify --data data --repair
    """
    store = _store(data_dir)
    damaged: list[str] = []
    total = len(store.catalog.pack_sizes())
    with errors.status("verifying") as status:
        for index, (pack, is_sound) in enumerate(store.verify(), 1):
            status.update(f"verifying {index} of {total} packs")
            if not is_sound:
                damaged.append(pack)
    dropped = [model for pack in damaged for model in store.drop_pack(pack)] if repair else []
    if as_json:
        print_json({"packs": total, "damaged": damaged, "dropped_models": dropped})
    else:
        console.print(f"{total} packs, {len(damaged)} damaged" + (f", {len(dropped)} models forgotten" if repair else ""))
    if damaged and not repair:
        raise SystemExit(1)


def _as_record(model: Any) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "artifacts": model.uris,
        "digest": manifest.digest,
        "family": manifest.family,
        "task": manifest.task,
        "width": manifest.width,
        "max_tokens": manifest.max_tokens,
        "mapped_bytes": manifest.mapped_bytes,
        "imported_s": model.imported_s,
        "used_s": model.used_s,
        "notes": manifest.notes,
    }
