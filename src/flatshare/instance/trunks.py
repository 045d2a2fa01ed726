"""Step 5c: an artifact in packs refers to trunks, which lie once below the endpoint's prefix. Before the import they are looked at."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from flatshare.core.errors import BadPackage, StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.package.packed import ADDRESSES, LISTING, TrunkAddress, read_listing
from flatshare.package.packs import TRUNKS, Pack
from flatshare.store.leftovers import is_left_out
from flatshare.store.link import Link
from flatshare.store.sources import fetch, probe
from flatshare.store.tensors import TensorStore

_MOST_TRUNKS = 8


def with_trunks(store: TensorStore, folder: Path, root: str, incoming: Path, limits: StoreLimits, link: Link) -> Path:
    """The artifact's folder, or, if it is in packs, one of links with the addresses of its trunks.

    A trunk must lie below the same prefix, so that nobody is served tensors that he cannot bring; it is read and hashed once on a
    machine. Raises UnknownTarget if it is not there, BadPackage if it lacks what the artifact says it has.
    """
    listings = [path for path in folder.rglob(f"*{LISTING}") if not is_left_out(path.relative_to(folder).parts)]
    if not listings:
        return folder
    wanted: dict[str, set[str]] = {}
    for listing in map(read_listing, listings):
        for tensor in listing.tensors:
            if tensor.trunk is not None:
                wanted.setdefault(tensor.trunk, set()).add(tensor.digest)
    if len(wanted) > _MOST_TRUNKS:
        raise BadPackage(f"the model refers to {len(wanted)} trunks: at most {_MOST_TRUNKS} are accepted")
    addresses = {trunk: _looked_at(store, trunk, digests, _Way(root, incoming, limits, link)) for trunk, digests in wanted.items()}
    linked = incoming / "linked"
    _link(folder, linked)
    for place in {linked / path.parent.relative_to(folder) / ADDRESSES for path in listings}:
        place.mkdir(exist_ok=True)
        for trunk, address in addresses.items():
            (place / trunk).write_bytes(msgspec.json.encode(address))
    return linked


def _looked_at(store: TensorStore, trunk: str, digests: set[str], way: "_Way") -> TrunkAddress:
    uri = ArtifactUri(f"{way.root.rstrip('/')}/{TRUNKS}{trunk}")
    try:
        artifact = probe(uri, root=way.root, limits=way.limits)
    except UnknownTarget as error:
        raise UnknownTarget(
            f"the model is made of tensors of trunk {trunk}, which is not at '{uri}': deploy its package with 'flatshare deploy', "
            f"which sends the trunk too, or copy it there"
        ) from error
    known = store.catalog.trunk(uri, artifact.version)
    if not known:
        try:
            pack = Pack(fetch(artifact, way.incoming, way.limits, way.link))
            pack.verify(trunk)
        except BadPackage as error:
            # Not the artifact's fault: a refusal would be remembered until the artifact changes, and it is the trunk that has to.
            raise StoreUnavailable(f"trunk {trunk} at '{uri}' cannot be used: {error}") from error
        known = frozenset(tensor.digest for tensor in pack.index.tensors)
        store.catalog.remember_trunk(uri, artifact.version, known)
    if not digests <= known:
        raise BadPackage(f"the model says that trunk {trunk} has tensors which it lacks: make the package anew")
    return TrunkAddress(uri, way.root, str(way.incoming))


@dataclass(frozen=True, slots=True)
class _Way:
    """How a trunk comes here, and where to."""

    root: str
    incoming: Path
    limits: StoreLimits
    link: Link


def _link(folder: Path, linked: Path) -> None:
    """Links to the files that count, an interrupted try's are made again."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not is_left_out(relative.parts):
            place = linked / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(path.absolute())
