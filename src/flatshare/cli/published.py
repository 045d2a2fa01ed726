"""`flatshare code publish`, `published` and `revoke`: which Python code of models a server may run."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, json_option, print_json
from flatshare.core.errors import BadPackage

_DIGEST = re.compile(r"[0-9a-f]{64}")


def _data_option(command: Any) -> Any:
    path = click.Path(path_type=Path, file_okay=False)
    return click.option("--data", "data_dir", default="data", show_default=True, type=path, help="The server's data folder.")(command)


@click.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--note", help="What it is, for the list. Default: where it was found.")
@_data_option
@json_option
def publish(what: tuple[str, ...], note: str | None, data_dir: Path, as_json: bool) -> None:
    """Let the Python code of these models run on the server over --data, at once, whatever weights come with it.

    WHAT is a model's artifact (a folder, an archive, an s3:// address, a folder made by 'flatshare package'), all of whose code is
    published, or the digest that a refusal shows. Read the code first: it runs as the server's user.

    \b
    Examples:
      flatshare code publish acme-tags.package --data /var/lib/flatshare
      flatshare code publish s3://models/acme/tags.tar.gz --note "tagger 2, reviewed by Kim"
    """
    found = [pair for item in what for pair in _digests(item)]
    done = [_file(data_dir).publish(digest, note or place, time.time()) for digest, place in found]
    for publication in done:
        _note(data_dir, "flatshare:PublishCode", publication)
    _show(done, as_json=as_json)


@click.command()
@_data_option
@json_option
def published(data_dir: Path, as_json: bool) -> None:
    """List what may run, the newest last.

    \b
    Example:
      flatshare code published --data /var/lib/flatshare
    """
    _show(sorted(_file(data_dir).read().values(), key=lambda publication: publication.published_s), as_json=as_json)


@click.command()
@click.argument("digest")
@_data_option
@json_option
def revoke(digest: str, data_dir: Path, as_json: bool) -> None:
    """Let code run no more: within a second, requests for its models are refused, those in memory too.

    \b
    Example:
      flatshare code revoke 8a7f… --data /var/lib/flatshare
    """
    publication = _file(data_dir).revoke(digest)
    _note(data_dir, "flatshare:RevokeCode", publication)
    if as_json:
        print_json({"revoked": digest, "note": publication.note})
    else:
        console.print(f"{digest} ({escape(publication.note)}) runs no more", highlight=False)


def _digests(what: str) -> list[tuple[str, str]]:
    """Digests, each with where it was found."""
    if _DIGEST.fullmatch(what):
        return [(what, "by its digest")]
    from flatshare.core.ids import ArtifactUri
    from flatshare.core.settings import StoreLimits
    from flatshare.store.sources import fetch, probe

    uri = what if "://" in what else f"file://{Path(what).absolute()}"
    with tempfile.TemporaryDirectory(prefix="flatshare-") as into:
        folder = fetch(probe(ArtifactUri(uri), root=uri), Path(into), StoreLimits())
        found = [(code.digest, f"{what}: {code.model}, version {code.version}") for top in _artifacts(folder) for code in _code(top)]
    if not found:
        raise BadPackage(f"{what} holds no Python model: nothing has to be published for it to run")
    return list(dict(found).items())


def _artifacts(folder: Path) -> list[Path]:
    """The folder, or those in it, as a package of several parts has them."""
    from flatshare.package.triton.repository import is_repository

    return [folder] if is_repository(folder) else sorted(path for path in folder.iterdir() if path.is_dir())


def _code(folder: Path) -> Any:
    from flatshare.package.triton.code import python_code

    return python_code(folder)


def _file(data_dir: Path) -> Any:
    from flatshare.build import PUBLISHED_FILE
    from flatshare.store.published import PublishedFile

    return PublishedFile(data_dir / PUBLISHED_FILE)


def _show(publications: list[Any], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(publications))
        return
    table = Table("digest", "published", "what")
    for publication in publications:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(publication.published_s))
        table.add_row(publication.digest, when, escape(publication.note))
    console.print(table)


def _note(data_dir: Path, action: str, publication: Any) -> None:
    """In the audit log, as done by whoever runs this."""
    from flatshare.build import AUDIT_DIR
    from flatshare.security.audit import AuditLog, Deed

    named = (f"code/{publication.digest}", publication.note)
    AuditLog(data_dir / AUDIT_DIR).changed_now(Deed(time.time(), f"uid {os.getuid()}", "", action, named, "command line", "done", "-"))
