"""Hundreds of classifiers on one trunk: head-only fine-tunings, each a checkpoint folder whose trunk is a link to the same file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from flatshare.bench.flan import write_safetensors
from flatshare.package.weights import WeightsFile

LABELS = ("delivery", "payment", "return")
_TRUNK, _HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_heads(base: Path, folder: Path, count: int) -> Iterator[Path]:
    """Checkpoints as save_pretrained() writes them in two shards, without 90 MB of disk for each."""
    folder.mkdir(parents=True)
    trunk, width = shutil.copyfile(base / "model.safetensors", folder / "trunk"), orjson.loads((base / "config.json").read_bytes())
    labels = {"id2label": {str(i): label for i, label in enumerate(LABELS)}, "label2id": {label: i for i, label in enumerate(LABELS)}}
    config = orjson.dumps(width | labels | {"architectures": ["BertForSequenceClassification"]})
    for index in range(count):
        place = folder / f"{index}"
        place.mkdir()
        (place / "config.json").write_bytes(config)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (place / name).hardlink_to(shutil.copyfile(base / name, folder / name) if index == 0 else folder / name)
        (place / _TRUNK).hardlink_to(trunk)
        random = np.random.default_rng(index)
        head = {
            "classifier.weight": random.standard_normal((len(LABELS), width["hidden_size"]), np.float32),
            "classifier.bias": random.standard_normal(len(LABELS), np.float32),
        }
        write_safetensors(place / _HEAD, head)
        places = dict.fromkeys(WeightsFile(trunk).entries, _TRUNK) | dict.fromkeys(head, _HEAD)
        (place / "model.safetensors.index.json").write_bytes(orjson.dumps({"metadata": {}, "weight_map": places}))
        yield place
