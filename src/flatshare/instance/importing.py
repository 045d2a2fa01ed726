"""A model's way onto this machine, in a process of its own: fetch, check, store.

Archives, weights and configs of strangers are only ever opened here: if one kills the process, one import fails and the server goes on.
(A tokenizer is checked here too, and runs in the instance.)
"""

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from flatshare.core.call import Urgency
from flatshare.core.errors import BadPackage
from flatshare.core.ids import ArtifactUri, ModelDigest
from flatshare.core.settings import DiskSettings, StoreLimits
from flatshare.instance.disk import DiskRoom, Newcomer, import_lock, remove_if_nobody_imports
from flatshare.instance.trunks import with_trunks
from flatshare.package.importer import import_checkpoint
from flatshare.policy.evict import Order
from flatshare.store.archive import disk_errors
from flatshare.store.catalog import Refusal
from flatshare.store.link import Link
from flatshare.store.sources import Artifact, fetch, probe
from flatshare.store.tensors import RepairReport, TensorStore

_PR_SET_PDEATHSIG = 1
_NICENESS = {Urgency.DEMAND: 10, Urgency.AHEAD: 19}  # an import takes seconds of a core: requests get nine times its share, or 70 times
_MAX_SENTENCE = 1000
_STALE_AFTER_S = 3600.0  # a fetch that broke off goes on where it stopped, if it is asked for again within the hour


def die_with_parent(urgency: Urgency = Urgency.DEMAND) -> None:
    """The kernel ends this process when the instance that started it is gone, however it went (prctl(2), Linux); and others come first."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS[urgency]
    for thread in Path("/proc/self/task").iterdir():  # each has its own, and numpy's are there already
        os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ImportJob:
    """What is to be brought here, and how. Models in `in_use` stay on the disk."""

    store_dir: Path
    uri: ArtifactUri
    root: str
    disk_bytes: int
    in_use: frozenset[ModelDigest]
    urgency: Urgency = Urgency.DEMAND
    settings: DiskSettings = field(default_factory=DiskSettings)
    order: Order = Order.VALUE
    """In which models leave the disk for it."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What came, and what had to leave the disk for it."""

    digest: ModelDigest
    sent_away: tuple[ArtifactUri, ...] = ()
    took_s: float | None = None
    """As long as it takes when somebody waits for it; None if that was not seen: it was there, or half there, or gave way to others."""


def import_artifact(job: ImportJob) -> Imported:
    """The worker's one job: make sure that the artifact, as it is now, is in the store.

    Raises what `probe`, `fetch` and `import_checkpoint` raise. What is wrong with an artifact is remembered, so that asking again
    costs nothing until the artifact changes.
    """
    store = TensorStore(job.store_dir)
    with disk_errors(store.folder), _only_importer_of(store, job.uri) as incoming:
        artifact = probe(job.uri, root=job.root)
        known = store.catalog.model_of(job.uri, artifact.version)
        if known is not None:
            return Imported(known)
        was_begun = any(incoming.iterdir())
        began_s, room = time.monotonic(), DiskRoom(store, job.disk_bytes, job.in_use, job.order)
        with room.reserved(_newcomer(artifact, job.urgency), incoming.with_suffix(".lock")):
            digest = _bring(store, artifact, job.root, incoming, Link(store.folder, job.settings, job.urgency))
        took_s = None if was_begun or job.urgency is Urgency.AHEAD else time.monotonic() - began_s
        if took_s is not None:
            store.catalog.remember_import(digest, took_s)
        room.settle(digest)
        return Imported(digest, tuple(room.sent_away), took_s)


def _bring(store: TensorStore, artifact: Artifact, root: str, incoming: Path, link: Link) -> ModelDigest:
    limits = StoreLimits()
    try:
        folder = with_trunks(store, fetch(artifact, incoming, limits, link), root, incoming, limits, link)
        report = import_checkpoint(store, folder, artifact.uri, artifact.version, limits)
    except BadPackage as raised:
        error = type(raised)(str(raised)[:_MAX_SENTENCE])  # it may quote what strangers wrote
        store.catalog.remember_refusal(artifact.uri, artifact.version, Refusal(type(error).__name__, str(error)))
        shutil.rmtree(incoming)
        raise error from None
    shutil.rmtree(incoming)
    return report.manifest.digest


def _newcomer(artifact: Artifact, urgency: Urgency) -> Newcomer:
    is_here = artifact.kind == "directory" and artifact.uri.startswith("file://")
    return Newcomer(artifact.uri, artifact.size_bytes, 0 if is_here else artifact.size_bytes, urgency)


def repair(store: TensorStore) -> RepairReport:
    """What an instance does when it starts: bring the store back in order after an import that was killed.

    Other instances may be at work in the same store: their imports are waited for, their folders left alone.
    """
    for folder in store.incoming_dir.iterdir():
        if _is_stale(folder):
            remove_if_nobody_imports(folder)
    return store.repair()


def _is_stale(folder: Path) -> bool:
    with suppress(FileNotFoundError):  # another instance may remove it while we look
        return folder.is_dir() and time.time() - folder.stat().st_mtime > _STALE_AFTER_S
    return False


@contextmanager
def _only_importer_of(store: TensorStore, uri: ArtifactUri) -> Iterator[Path]:
    """One import per artifact on this machine, whoever asks. Yields the folder for its files; an earlier try may have filled it in part."""
    incoming = store.incoming_path(uri)
    path = incoming.with_suffix(".lock")
    with import_lock(path) as file:
        file.truncate(0)  # what an importer that was killed had reserved
        incoming.mkdir(exist_ok=True)
        try:
            yield incoming
        finally:
            with suppress(OSError):  # what a fetch that broke off has left stays for the next try, and its lock
                if incoming.exists():
                    incoming.rmdir()
                path.unlink()  # thousands of them would be looked at for every import
