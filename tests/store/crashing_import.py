"""Run by test_tensors.py: imports that the kernel kills before their Nth step, each in a store of its own.

`python -m tests.store.crashing_import CHECKPOINT STORES` writes one JSON line for each step: what a killed import left, and what followed.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.package.importer import import_checkpoint
from flatshare.store import tensors
from flatshare.store.catalog import Catalog
from flatshare.store.tensors import TensorStore

STEPS: list[tuple[Any, str]] = [
    (os, "write"),
    (os, "fsync"),
    (Path, "rename"),
    (Path, "write_bytes"),
    (tensors, "insert_pack"),
    (tensors, "insert_model"),
    (Catalog, "transaction"),
]


def main(checkpoint: Path, stores: Path) -> None:
    step = 1
    while crashed(checkpoint, stores / str(step), step):
        store = TensorStore(stores / str(step))
        left = [path.name for folder in (store.packs_dir, store.blobs_dir) for path in folder.iterdir()]
        models = store.usage().models
        report = store.repair()
        again = store.repair()
        run_import(store, checkpoint)
        sound = [is_sound for _, is_sound in store.verify()]
        print(
            orjson.dumps(
                {"left": left, "models": models, "removed": report.removed_files, "again": again.removed_files, "sound": sound}
            ).decode()
        )
        step += 1


def crashed(checkpoint: Path, folder: Path, step: int) -> bool:
    """Import in a child that is killed before its Nth step; False if it got to the end."""
    child = os.fork()
    if child == 0:
        store = TensorStore(folder)
        kill_before(step)
        run_import(store, checkpoint)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kill_before(step: int) -> None:
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return run

    for place, name in STEPS:
        setattr(place, name, counted(getattr(place, name)))


def run_import(store: TensorStore, checkpoint: Path) -> None:
    import_checkpoint(store, checkpoint, ArtifactUri(f"file://{checkpoint}"), "1", StoreLimits())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
