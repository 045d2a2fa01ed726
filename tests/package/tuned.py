"""Models that were trained from one trunk: all tensors are the trunk's but those of the last layer's output."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.e2e.checkpoints import write_checkpoint

TUNED = "encoder.layer.1.output.dense.weight"


def write_trunk_checkpoint(folder: Path) -> Path:
    return write_checkpoint(folder, 7001, rows=4096)


def write_tuned(folder: Path, trunk: Path, seed: int) -> Path:
    shutil.copytree(trunk, folder)
    tensors = load_file(trunk / "model.safetensors")
    tensors[TUNED] = np.random.default_rng(seed).standard_normal(tensors[TUNED].shape, np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder
