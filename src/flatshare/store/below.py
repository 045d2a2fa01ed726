"""Which models lie below an endpoint's prefix, and what they would take in memory.

A model is an archive, or the uppermost folder below the prefix that holds a file of its own.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import obstore

from flatshare.core.errors import Abandoned, StoreUnavailable
from flatshare.core.ids import ArtifactUri
from flatshare.core.spec import ModelManifest, ModelSize
from flatshare.store.archive import archive_kind
from flatshare.store.catalog import Catalog
from flatshare.store.leftovers import is_left_out
from flatshare.store.objects import denied, store_errors
from flatshare.store.remote import open_store

T = TypeVar("T")
_OWN_BYTES = 1_000_000  # of a model that was never loaded alone here: what an operator is told to reckon with
_SESSION_BYTES = 2_500_000  # as the mapped engine reserves them
_TOKENIZER_BYTES = 7_000_000
_MAX_DEPTH = 8
_CATALOG = "catalog.db"


@dataclass(frozen=True, slots=True)
class _File:
    parts: tuple[str, ...]
    size_bytes: int


def sizes_below(store_dir: Path, prefix: str, is_over: Callable[[], bool], *, workers: int) -> Iterator[ModelSize]:
    """By their manifests where they were imported on this machine, else by the sizes of their artifacts.

    A prefix where nothing lies has none. Raises StoreUnavailable or UnknownTarget (it may not be read), and Abandoned soon after
    `is_over` answers True.
    """
    root, catalog = prefix.rstrip("/"), Catalog(store_dir / _CATALOG)
    artifacts = artifacts_in(_while_wanted(_files(root), is_over))
    for target, size_bytes in _while_wanted(sorted(artifacts.items()), is_over):
        uri = f"{root}/{target}"
        yield _size(uri, catalog, workers) or ModelSize(_OWN_BYTES, {}, {uri: size_bytes})


def known_below(store_dir: Path, prefix: str, is_over: Callable[[], bool], *, workers: int) -> Iterator[ModelSize]:
    """Those that were imported on this machine, whether they still lie there or not: no store is asked. Raises Abandoned as above."""
    catalog = Catalog(store_dir / _CATALOG)
    for uri in _while_wanted(catalog.artifacts_below(prefix.rstrip("/")), is_over):
        if (size := _size(uri, catalog, workers)) is not None:
            yield size


def artifacts_in(files: Iterable[tuple[tuple[str, ...], int]]) -> Mapping[str, int]:
    """Target models and the sizes of their artifacts, of files below a prefix: path and size in bytes each."""
    found: dict[str, int] = {}
    visible = [_File(parts, size) for parts, size in files if not is_left_out(parts)]
    folders = {file.parts[:-1] for file in visible if len(file.parts) > 1 and archive_kind(file.parts[-1]) is None}
    for file in visible:
        above = (file.parts[:depth] for depth in range(1, len(file.parts)))
        home = next((folder for folder in above if folder in folders), None)
        if home is None and archive_kind(file.parts[-1]) is not None:
            home = file.parts
        if home is not None:
            found["/".join(home)] = found.get("/".join(home), 0) + file.size_bytes
    return found


def _while_wanted(items: Iterable[T], is_over: Callable[[], bool]) -> Iterator[T]:
    for item in items:
        if is_over():
            raise Abandoned("nobody waits for what lies below the prefix any more")
        yield item


def _size(uri: str, catalog: Catalog, workers: int) -> ModelSize | None:
    """None if it was not imported here."""
    digest = catalog.last_model_of(ArtifactUri(uri))
    manifest = catalog.manifest(digest) if digest is not None else None
    if digest is None or manifest is None:
        return None
    own_bytes = catalog.measured_own_bytes(digest)
    return ModelSize(
        _OWN_BYTES if own_bytes is None else own_bytes, _shared(manifest, workers), dict[str, int](manifest.distinct_pieces.items())
    )


def _shared(manifest: ModelManifest, workers: int) -> dict[str, int]:
    if manifest.files:
        return {}
    return {
        f"session {manifest.graph}": _SESSION_BYTES,
        f"workspaces {manifest.graph}": workers * manifest.workspace_bytes,
        f"tokenizer {manifest.tokenizer}": _TOKENIZER_BYTES,
    }


def _files(root: str) -> Iterator[tuple[tuple[str, ...], int]]:
    scheme, _, path = root.partition("://")
    yield from _local_files(root, path or "/") if scheme == "file" else _remote_files(root, scheme, path)


def _local_files(root: str, top: str) -> Iterator[tuple[tuple[str, ...], int]]:
    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise denied(root) from error

    for folder, folders, names in os.walk(top, onerror=refuse, followlinks=True):
        above = Path(folder).relative_to(top).parts
        if len(above) > _MAX_DEPTH:  # a link that leads up again has no end
            folders.clear()
        for name in names:
            try:
                size = Path(folder, name).stat().st_size
            except FileNotFoundError:
                continue  # a link that leads nowhere, or a file that has gone meanwhile
            except PermissionError as error:
                raise denied(root) from error
            except OSError as error:
                raise StoreUnavailable(f"'{root}' cannot be read ({error}): try again.") from error
            yield (*above, name), size


def _remote_files(root: str, scheme: str, path: str) -> Iterator[tuple[tuple[str, ...], int]]:
    bucket, _, key = path.partition("/")
    with store_errors(root):
        for batch in obstore.list(open_store(f"{scheme}://{bucket}"), key or None, chunk_size=1000):
            for meta in batch:
                parts = tuple(meta["path"].removeprefix(key).strip("/").split("/"))
                if meta["size"] or not meta["path"].endswith("/"):
                    yield parts, meta["size"]
