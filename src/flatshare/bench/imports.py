"""How long imports take: one checkpoint of 90 MB that is new, and many classifiers whose trunk is known already."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson

from flatshare.bench.tenants import Tenant, base_checkpoint, write_tenants
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore

_LABELS = 5
_TRUNK, _HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def import_90mb_s(rounds: int = 3) -> float:
    """Seconds to import MiniLM's checkpoint from a local folder into an empty store, until it is durable: the median."""
    seconds = []
    with _folders() as (checkpoints, stores):
        [_] = write_tenants(base_checkpoint(), checkpoints, [Tenant("new", 1)])
        for turn in range(rounds):
            store = TensorStore(stores / str(turn))
            started = time.perf_counter()
            import_checkpoint(store, checkpoints / "new", _uri(checkpoints / "new"), "1", StoreLimits())
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def register_1000_s(count: int = 1000) -> float:
    """Seconds to import so many classifiers on MiniLM, one after the other, each durable before the next: the trunk is known.

    Each checkpoint is complete: its trunk is a shard (a hard link to one file, so that the disk holds a thousand), its head another.
    """
    with _folders() as (checkpoints, stores):
        store = TensorStore(stores / "one")
        folders = list(write_classifiers(base_checkpoint(), checkpoints, count + 1))
        _import(store, folders[0])
        started = time.perf_counter()
        for folder in folders[1:]:
            _import(store, folder)
        seconds = time.perf_counter() - started
        assert store.usage().models == count + 1, "two heads were the same, or one was lost"
        return seconds


def write_classifiers(base: Path, folder: Path, count: int) -> Iterator[Path]:
    """`count` checkpoints of a BERT classifier whose trunk is `base`'s and whose head is its own."""
    config = orjson.loads((base / "config.json").read_bytes())
    labels = {str(index): f"intent {index}" for index in range(_LABELS)}
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": labels}
    weights = (base / "model.safetensors").read_bytes()
    names = [name for name in orjson.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]) if name != "__metadata__"]
    head = ("classifier.weight", "classifier.bias")
    index = {"weight_map": dict.fromkeys(names, _TRUNK) | dict.fromkeys(head, _HEAD)}
    for number in range(count):
        place = folder / f"{number:04}"
        place.mkdir(parents=True)
        (place / "config.json").write_bytes(orjson.dumps(config))
        (place / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            os.link(folder / "0000" / name, place / name) if number else (place / name).write_bytes((base / name).read_bytes())
        os.link(folder / "0000" / _TRUNK, place / _TRUNK) if number else (place / _TRUNK).write_bytes(weights)
        random = np.random.default_rng(number)
        tensors = {name: random.standard_normal(shape, np.float32) for name, shape in zip(head, ((_LABELS, 384), (_LABELS,)), strict=True)}
        (place / _HEAD).write_bytes(_safetensors(tensors))
        yield place


def _safetensors(tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> bytes:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [end, end := end + tensor.nbytes]}
    text = orjson.dumps(header)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def _import(store: TensorStore, folder: Path) -> None:
    import_checkpoint(store, folder, _uri(folder), "1", StoreLimits())


def _uri(folder: Path) -> ArtifactUri:
    return ArtifactUri(f"file://{folder}")


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """One for checkpoints, one for stores; gone afterwards."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoints", Path(folder) / "stores"
