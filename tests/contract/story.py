"""The story's packages, built with small random weights: what a team brings when it leaves SageMaker or Triton."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

CODE = Path(__file__).parents[1] / "packages" / "story"
WORDS = ["[PAD]", "[END]", "[CLS]", "[UNK]", "where", "is", "my", "parcel", "refund", "order", "late", "the", "a", "please"]
WORDS += ["help", "with", "card", "payment", "thank", "you"]

_PREPROCESS = """
backend: "python"
max_batch_size: 16
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }
]
parameters { key: "max_tokens" value: { string_value: "12" } }
dynamic_batching { }
"""
_ENCODER = """
backend: "pytorch"
max_batch_size: 16
input [
  { name: "ids__0" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "mask__1" data_type: TYPE_INT64 dims: [ -1 ] }
]
output [ { name: "vector__0" data_type: TYPE_FP32 dims: [ 8 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
_ENSEMBLE = """
platform: "ensemble"
max_batch_size: 16
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 8 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "KIND_preprocess" model_version: -1
      input_map { key: "text" value: "text" }
      output_map { key: "input_ids" value: "ids" }
      output_map { key: "attention_mask" value: "mask" }
    },
    {
      model_name: "KIND_encoder" model_version: -1
      input_map { key: "ids__0" value: "ids" }
      input_map { key: "mask__1" value: "mask" }
      output_map { key: "vector__0" value: "embedding" }
    }
  ]
}
"""
_AUTOCOMPLETE = """
backend: "python"
max_batch_size: 8
input [
  { name: "prompt" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
]
output [
  { name: "completion" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "score" data_type: TYPE_FP32 dims: [ 1 ] }
]
"""
_RANKER = """
backend: "python"
input [ { name: "query" data_type: TYPE_STRING dims: [ 1 ] }, { name: "passages" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""


def embedding_package(folder: Path, kind: str, seed: int) -> Path:
    """`kind` is query or document: one target model each, an ensemble of preprocessing and a TorchScript encoder."""
    _model(folder, f"{kind}_preprocess", _PREPROCESS, "preprocess.py")
    shutil.copy(CODE / "text_rules.py", folder / f"{kind}_preprocess" / "1")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    (folder / f"{kind}_preprocess" / "1" / "vocabulary.json").write_text(json.dumps(vocabulary))
    _model(folder, f"{kind}_encoder", _ENCODER)
    _save_encoder(folder / f"{kind}_encoder" / "1" / "model.pt", seed)
    _model(folder, f"encode_{kind}", _ENSEMBLE.replace("KIND", kind))
    return folder


def autocomplete_package(folder: Path, seed: int, *, name: str = "autocomplete", width: int = 8) -> Path:
    """A Python model with a sequence-to-sequence loop of its own."""
    from safetensors.numpy import save_file

    _model(folder, name, _AUTOCOMPLETE, "autocomplete.py")
    random = np.random.default_rng(seed)
    names = ("encode", "cross_key", "cross_value", "cross_query", "key", "value", "query", "out")
    weights = {name: random.standard_normal((width, width), np.float32) for name in names}
    weights["embed"] = random.standard_normal((len(WORDS), width), np.float32)
    (folder / name / "1" / "words.json").write_text(json.dumps(WORDS))
    save_file(weights, folder / name / "1" / "model.safetensors")
    return folder


def ranking_package(folder: Path, seed: int) -> Path:
    """A Python model that calls the embedding ensemble."""
    embedding_package(folder, "query", seed)
    _model(folder, "zz_ranker", _RANKER, "ranker.py")
    return folder


def archive(folder: Path, target: Path) -> Path:
    """As it is uploaded: a tar.gz with the models' folders at its top."""
    with tarfile.open(target, "w:gz") as packed:
        for path in sorted(folder.iterdir()):
            packed.add(path, path.name)
    return target


def _model(folder: Path, name: str, settings: str, code: str | None = None) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(settings)
    if code is not None:
        shutil.copy(CODE / code, folder / name / "1" / "model.py")


def _save_encoder(path: Path, seed: int) -> None:
    """Embed, mix, pool over the mask, normalise: small, and everything in it decides the answer."""
    import torch

    class Encoder(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(len(WORDS), 16)
            self.mix = torch.nn.Linear(16, 8)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(self.mix(self.embed(ids)))
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1)

    torch.manual_seed(seed)
    example: Any = (torch.ones((2, 3), dtype=torch.int64), torch.ones((2, 3), dtype=torch.int64))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what such packages hold
        torch.jit.trace(Encoder().eval(), example).save(str(path))
