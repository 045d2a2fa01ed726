"""config.json, read with suspicion: sizes that are no sane integers, and contradictions, are refused with the field's name."""

from collections.abc import Callable
from typing import Any, TypeVar

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.graphs.blocks import ACTIVATIONS

_MAX_DIMENSION = 2**20  # beyond any real model, small enough that products stay sane
_MAX_LAYERS = 1000
_T = TypeVar("_T")


class Config:
    """The object in config.json. Every accessor raises BadPackage or UnsupportedModel with what is wrong."""

    def __init__(self, fields: dict[str, Any], name: str = "config.json") -> None:
        self.fields = fields
        self._name = name

    def get(self, *names: str) -> Any:
        """The value of the first of `names` that is given, None if none is."""
        return next((self.fields[name] for name in names if self.fields.get(name) is not None), None)

    def size(self, name: str, *, default: int | None = None, least: int = 1) -> int:
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= _MAX_DIMENSION:
            raise BadPackage(f"{self._name}: {name} must be an integer from {least} to {_MAX_DIMENSION}, not {_short(value)}")
        return value

    def layers(self, name: str) -> int:
        layers = self.size(name)
        if layers > _MAX_LAYERS:
            raise BadPackage(f"{name} {layers} is beyond any real model")
        return layers

    def heads(self, name: str, hidden_name: str) -> int:
        """The attention heads, which must divide the width."""
        hidden, heads = self.size(hidden_name), self.size(name)
        if hidden % heads:
            raise BadPackage(f"{hidden_name} {hidden} is not a multiple of {name} {heads}: {self._name} contradicts itself")
        return heads

    def number(self, name: str, *, default: float, below: float) -> float:
        """A number between 0 and `below`, both exclusive."""
        value = self.fields.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < below:
            raise BadPackage(f"{self._name}: {name} must be a number between 0 and {below:g}, not {_short(value)}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        return self.expect(name, bool, "true or false", default=default)

    def activation(self, name: str, *, default: str = "gelu") -> str:
        value = self.fields.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise UnsupportedModel(f"{name} {_short(value)} is not served: known are {', '.join(ACTIVATIONS)}")
        return value

    def expect(self, name: str, kind: type[_T], what: str, *, default: _T) -> _T:
        """A value of one type, or the default if there is none."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise BadPackage(f"{self._name}: {name} must be {what}, not {_short(value)}")
        return value

    def refuse(self, name: str, is_served: Callable[[Any], bool], served: str, *, default: Any) -> None:
        """Raise UnsupportedModel unless the value is one that the family's graph covers."""
        value = self.fields.get(name, default)
        if not is_served(value):
            raise UnsupportedModel(f"{name} {_short(value)} is not served: only {served} is")


def _short(value: object) -> str:
    """For an error's sentence: what a stranger wrote is quoted, but not at any length."""
    return repr(value)[:64]
