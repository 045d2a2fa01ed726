"""Sizes out of a config of a stranger's making: refused, with the field's name, if they are no sane numbers."""

from collections.abc import Mapping
from typing import Any

from flatshare.core.errors import BadPackage

_MAX_DIMENSION = 2**20  # beyond any real model, small enough that products stay sane
_MAX_LAYERS = 1000


def size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= _MAX_DIMENSION:
        raise BadPackage(f"config.json: {name} must be an integer from 1 to {_MAX_DIMENSION}, not {repr(value)[:64]}")
    return value


def layers(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = size(config, name, default)
    if value > _MAX_LAYERS:
        raise BadPackage(f"{name} {value} is beyond any real model")
    return value


def number(config: Mapping[str, Any], name: str, default: float, below: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < below:
        raise BadPackage(f"config.json: {name} must be a number between 0 and {below:g}, not {repr(value)[:64]}")
    return float(value)
