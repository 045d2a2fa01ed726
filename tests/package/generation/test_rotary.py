"""Tables of rotary positions equal those of transformers, bit for bit or nearly so."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flatshare.package.config import Config
from flatshare.package.generation.rotary import read_rotary, rotary_tables

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
    "yarn, sharpened by two numbers": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16},
    "yarn, not cut to whole pairs": {"rope_type": "yarn", "factor": 8.0, "truncate": False, "original_max_position_embeddings": 256},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_cosines_and_sines_are_those_of_transformers(kind: str, theta: float) -> None:
    rope = {"rope_type": kind, "rope_theta": theta, **KINDS[kind]}
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 64, "max_position_embeddings": 2048}
    config = LlamaConfig(**sizes, rope_parameters=dict(rope))
    positions = torch.arange(2048)[None]
    cosines, sines = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    found = rotary_tables(read_rotary(Config({**sizes, "rope_parameters": rope}), head_size=64, positions=2048), 2048)
    for mine, theirs in zip(found, (cosines, sines), strict=True):
        np.testing.assert_allclose(mine, theirs[0, :, :32].numpy(), atol=2e-4)


def test_the_names_of_older_checkpoints_are_understood() -> None:
    old = Config({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = Config({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert read_rotary(old, head_size=64, positions=512) == read_rotary(new, head_size=64, positions=512)
