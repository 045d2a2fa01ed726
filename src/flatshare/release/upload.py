"""A version's artifacts to their places below the endpoint's prefix. What is there already is not sent again."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flatshare.core.errors import StoreUnavailable, UnknownTarget
from flatshare.core.release import Version
from flatshare.package.build import Package, TrunkUsed
from flatshare.package.packs import INDEX, PACK, TRUNKS, Pack
from flatshare.store.shelf import Shelf

_MARK = ".flatshare/README"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One file and its place."""

    key: str
    path: Path
    size_bytes: int


def transfers(package: Package, version: Version) -> list[Transfer]:
    """Every file of the package that the version's targets are made of."""
    return [transfer for part in package.record.parts for transfer in _of_artifact(package.artifact(part), version.targets[part.name])]


def missing(shelf: Shelf, version: Version, wanted: Iterable[Transfer]) -> list[Transfer]:
    """Those that are not there, or not whole. A key belongs to one version of one digest, so the size tells."""
    there = {key: size for target in version.targets.values() for key, size in _sizes(shelf, target).items()}
    return [transfer for transfer in wanted if there.get(transfer.key) != transfer.size_bytes]


def upload(shelf: Shelf, version: Version, wanted: list[Transfer]) -> int:
    """Bytes that had to be sent. Nobody is called by these names before all of them have arrived.

    Raises StoreUnavailable if something is not there afterwards, and what `Shelf.put` raises; a second try sends what is missing.
    """
    todo = missing(shelf, version, wanted)
    for transfer in todo:
        if shelf.size(transfer.key) != transfer.size_bytes:  # others may be sending the same
            shelf.put(transfer.key, transfer.path)
    left = missing(shelf, version, wanted) if todo else []
    if left:
        raise StoreUnavailable(
            f"'{shelf.uri}{left[0].key}' is not as it was sent: somebody else writes there, or the store lost it; try again"
        )
    return sum(transfer.size_bytes for transfer in todo)


def missing_trunks(shelf: Shelf, package: Package) -> list[TrunkUsed]:
    """Those that the package refers to and that do not lie below the prefix."""
    return [trunk for trunk in package.record.trunks if not _has_trunk(shelf, trunk)]


def send_trunks(shelf: Shelf, package: Package) -> int:
    """Bytes that had to be sent of what the package refers to. What is to be sent is hashed first.

    Raises UnknownTarget if a trunk is neither there nor beside the package, BadPackage if it is not what its name says.
    """
    sent_bytes = 0
    for trunk in missing_trunks(shelf, package):
        folder = package.trunk(trunk)
        if not folder.is_dir():
            raise UnknownTarget(
                f"'{package.folder}' refers to trunk {trunk.id}, which is neither at '{shelf.uri}{TRUNKS}' nor beside the package: "
                f"copy it to '{folder}', or package with --form folder"
            )
        Pack(folder).verify(trunk.id)
        for name in (PACK, INDEX):
            shelf.put(f"{TRUNKS}{trunk.id}/{name}", folder / name)
        sent_bytes += trunk.size_bytes
    return sent_bytes


def require_writable(shelf: Shelf) -> None:
    """Raises UnknownTarget, DiskFull or StoreUnavailable if nothing can be put below the prefix."""
    shelf.put(_MARK, b"models deployed by flatshare lie here\n")


def _has_trunk(shelf: Shelf, trunk: TrunkUsed) -> bool:
    there = shelf.sizes(f"{TRUNKS}{trunk.id}")
    folder = f"{TRUNKS}{trunk.id}/"
    return there.get(folder + PACK) == trunk.size_bytes and folder + INDEX in there


def remove(shelf: Shelf, version: Version) -> None:
    """A retired version's artifacts."""
    for target in version.targets.values():
        shelf.remove(list(_sizes(shelf, target)))


def _of_artifact(artifact: Path, target: str) -> list[Transfer]:
    if artifact.is_file():
        return [Transfer(target, artifact, artifact.stat().st_size)]
    paths = sorted(path for path in artifact.rglob("*") if path.is_file())
    return [Transfer(f"{target}/{path.relative_to(artifact).as_posix()}", path, path.stat().st_size) for path in paths]


def _sizes(shelf: Shelf, target: str) -> dict[str, int]:
    """Of the target's own objects: a list by prefix is by whole path segments, and an archive is one object."""
    folder = target.rpartition("/")[0]
    return {key: size for key, size in shelf.sizes(folder).items() if key == target or key.startswith(f"{target}/")}
