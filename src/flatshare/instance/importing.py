"""A model's way onto this machine, in a process of its own: fetch, check, store.

Archives, weights and configs of strangers are only ever opened here: if one kills the process, one import fails and the server goes on.
(A tokenizer is checked here too, and runs in the instance.)
"""

import ctypes
import fcntl
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flatshare.core.errors import BadPackage, DiskFull
from flatshare.core.ids import ArtifactUri, ModelDigest, ModelKey, model_key
from flatshare.core.settings import StoreLimits
from flatshare.core.sizes import format_size
from flatshare.instance.trunks import with_trunks
from flatshare.package.importer import import_checkpoint
from flatshare.policy import evict
from flatshare.policy.evict import Holders, Resident, Shortage
from flatshare.store.catalog import Refusal
from flatshare.store.sources import Artifact, fetch, probe
from flatshare.store.tensors import RepairReport, TensorStore

_PR_SET_PDEATHSIG = 1
_NICENESS = 10  # an import takes seconds of a core: requests get nine times its share
_MAX_SENTENCE = 1000
_STALE_AFTER_S = 3600.0  # a fetch that broke off goes on where it stopped, if it is asked for again within the hour


def die_with_parent() -> None:
    """The kernel ends this process when the instance that started it is gone, however it went (prctl(2), Linux); and others come first."""
    os.nice(_NICENESS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def import_artifact(store_dir: Path, uri: ArtifactUri, root: str, disk_bytes: int, in_use: frozenset[ModelDigest]) -> ModelDigest:
    """The worker's one job: make sure that the artifact, as it is now, is in the store, and return its model's digest.

    Models in `in_use` stay on the disk. Raises what `probe`, `fetch` and `import_checkpoint` raise. What is wrong with an artifact is
    remembered, so that asking again costs nothing until the artifact changes.
    """
    store, limits = TensorStore(store_dir), StoreLimits()
    with _only_importer_of(store, uri) as incoming:
        artifact = probe(uri, root=root)
        known = store.catalog.model_of(uri, artifact.version)
        if known is not None:
            return known
        _make_room(store, artifact, disk_bytes, in_use)
        try:
            folder = with_trunks(store, fetch(artifact, incoming, limits), root, incoming, limits)
            report = import_checkpoint(store, folder, uri, artifact.version, limits)
        except BadPackage as raised:
            error = type(raised)(str(raised)[:_MAX_SENTENCE])  # it may quote what strangers wrote
            store.catalog.remember_refusal(uri, artifact.version, Refusal(type(error).__name__, str(error)))
            shutil.rmtree(incoming)
            raise error from None
        shutil.rmtree(incoming)
        return report.manifest.digest


def repair(store: TensorStore) -> RepairReport:
    """What an instance does when it starts: bring the store back in order after an import that was killed.

    Other instances may be at work in the same store: their imports are waited for, their folders left alone.
    """
    for folder in store.incoming_dir.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > _STALE_AFTER_S:
            _remove_if_nobody_imports(folder)
    return store.repair()


def _remove_if_nobody_imports(incoming: Path) -> None:
    with incoming.with_suffix(".lock").open("a") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(incoming)


@contextmanager
def _only_importer_of(store: TensorStore, uri: ArtifactUri) -> Iterator[Path]:
    """One import per artifact on this machine, whoever asks. Yields the folder for its files; an earlier try may have filled it in part."""
    name = model_key(uri)
    incoming = store.incoming_dir / name
    with (store.incoming_dir / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        incoming.mkdir(exist_ok=True)
        yield incoming


def _make_room(store: TensorStore, artifact: Artifact, disk_bytes: int, in_use: frozenset[ModelDigest]) -> None:
    """Keep the disk ledger: the least recently used models go, those in memory stay."""
    shortage = Shortage(0, store.catalog.disk_bytes() + artifact.size_bytes - disk_bytes)
    if shortage.is_over:
        return
    models = store.catalog.models()
    residents = [
        Resident(ModelKey(m.manifest.digest), m.used_s, int(m.manifest.digest in in_use), 0, m.manifest.distinct_tensors) for m in models
    ]
    holders = Counter(tensor for resident in residents for tensor in resident.tensors)
    victims = evict.choose(residents, Holders(holders), shortage)
    if victims is None:
        raise DiskFull(f"the artifact has {format_size(artifact.size_bytes)}, the disk budget is {format_size(disk_bytes)}: raise --disk")
    for model in models:
        if ModelKey(model.manifest.digest) in victims:
            for uri in model.uris:
                store.catalog.forget_artifact(ArtifactUri(uri))
    store.collect()
