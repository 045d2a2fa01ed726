"""Rotary positions of Llama shapes, stretched or not: from config.json to the tables that the graph takes.

As transformers computes them (modeling_rope_utils.py there). What a table cannot hold, since it changes with the text, is refused.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config

_MOST = 1e9
_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rotary:
    """How far each pair of a head turns from one position to the next, and what cosines and sines are multiplied with."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


def read_rotary(config: Config, *, head_size: int, positions: int) -> Rotary:
    """transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling. Raises BadPackage or UnsupportedModel."""
    given = config.get("rope_parameters", "rope_scaling") or {}
    if not isinstance(given, dict):
        raise BadPackage("config.json: rope_parameters must be an object")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _KINDS:
        raise UnsupportedModel(f"rotary positions of type {repr(kind)[:64]} are not served: known are {', '.join(_KINDS)}")
    rope = Config(given, "rope_parameters in config.json")
    for place in (rope, config):
        place.refuse("partial_rotary_factor", lambda value: value in {None, 1}, "1", default=None)
    theta = (rope if "rope_theta" in given else config).number("rope_theta", default=10_000.0, below=_MOST)
    plain = np.float32(1) / _powers(theta, head_size)
    original = rope.size("original_max_position_embeddings", default=config.size("original_max_position_embeddings", default=positions))
    if kind == "linear":
        return _rotary(plain / np.float32(_factor(rope)))
    if kind == "llama3":
        return _rotary(_llama3(rope, plain, original))
    if kind == "yarn":
        return _yarn(rope, theta, head_size, original, positions)
    return _rotary(plain)  # "dynamic" stretches beyond max_position_embeddings only, where nothing is served


def rotary_tables(rotary: Rotary, positions: int) -> tuple[Floats, Floats]:
    """Cosines and sines [positions, head size / 2], computed in float32 as transformers does."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * np.array(rotary.frequencies, np.float32)[None, :]
    scale = np.float32(rotary.scale)
    return np.cos(angles) * scale, np.sin(angles) * scale


def _rotary(frequencies: Floats, scale: float = 1.0) -> Rotary:
    return Rotary(tuple(frequencies.astype(np.float32).tolist()), scale)


def _powers(theta: float, head_size: int) -> Floats:
    powers: Floats = np.float32(theta) ** (np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size))
    return powers


def _factor(rope: Config) -> float:
    if rope.get("factor") is None:
        raise BadPackage("rope_parameters in config.json: 'factor' is missing, by which positions are stretched")
    return rope.number("factor", default=1.0, below=_MOST)


def _llama3(rope: Config, plain: Floats, original: int) -> Floats:
    """Fast pairs stay, slow ones are stretched, and those between are in between."""
    factor = np.float32(_factor(rope))
    low, high = (rope.number(name, default=given, below=_MOST) for name, given in (("low_freq_factor", 1.0), ("high_freq_factor", 4.0)))
    if low >= high:
        raise BadPackage("rope_parameters in config.json: low_freq_factor must be less than high_freq_factor")
    length = np.float32(2 * math.pi) / plain
    share = (np.float32(original) / length - np.float32(low)) / np.float32(high - low)
    between = (1 - share) * plain / factor + share * plain
    stretched: Floats = np.where(length > original / low, plain / factor, np.where(length < original / high, plain, between))
    return stretched


def _yarn(rope: Config, theta: float, head_size: int, original: int, positions: int) -> Rotary:
    """Peng et al., 2023: as above, bounded by how often a pair turns within the original length; scores are sharpened."""
    factor = _factor(rope) if rope.get("factor") is not None else positions / original
    bounds = []
    for name, given in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        turns = rope.number(name, default=given, below=_MOST)
        bounds.append(head_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)))
    low, high = bounds
    if rope.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = (np.arange(head_size // 2, dtype=np.float32) - np.float32(low)) / np.float32((high - low) or 0.001)
    kept = np.float32(1) - np.clip(ramp, 0, 1)
    powers = _powers(theta, head_size)
    return _rotary((1 / (np.float32(factor) * powers)) * (1 - kept) + (1 / powers) * kept, _sharpening(rope, factor))


def _sharpening(rope: Config, factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return rope.number("attention_factor", default=1.0, below=_MOST)

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return of(rope.number("mscale", default=1.0, below=_MOST)) / of(rope.number("mscale_all_dim", default=1.0, below=_MOST))
    return of(1.0)
