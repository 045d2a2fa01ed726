"""BERT in plain numpy, from the checkpoint file itself: what an answer must be, computed by nothing that the server uses."""

import math
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from flatshare.package.weights import WeightsFile

Array = NDArray[np.float32]
_erf = np.frompyfunc(math.erf, 1, 1)


class ReferenceEncoder:
    """Mean-pooled, normalised sentence embeddings of one checkpoint. Slow and simple."""

    def __init__(self, checkpoint: Path) -> None:
        config = orjson.loads((checkpoint / "config.json").read_bytes())
        self._heads, self._layers, self._epsilon = config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"]
        file = WeightsFile(checkpoint / "model.safetensors")
        self._w = {name: file.float32(entry) for name, entry in file.entries.items() if entry.dtype == "F32"}
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, text: str) -> Array:
        """[hidden], of length 1."""
        ids = self._tokenizer.encode(text).ids
        x = self._w["embeddings.word_embeddings.weight"][ids] + self._w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + self._w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for index in range(self._layers):
            x = self._layer(x, f"encoder.layer.{index}")
        mean: Array = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _layer(self, x: Array, name: str) -> Array:
        q, k, v = (self._split(self._linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        joined = attended.transpose(1, 0, 2).reshape(x.shape)
        x = self._norm(x + self._linear(joined, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = self._linear(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)).astype(np.float32))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _split(self, x: Array) -> Array:
        """[tokens, hidden] → [heads, tokens, hidden / heads]"""
        return x.reshape(len(x), self._heads, -1).transpose(1, 0, 2)

    def _linear(self, x: Array, name: str) -> Array:
        out: Array = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return out

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._epsilon)
        out: Array = centred / scale * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return out
