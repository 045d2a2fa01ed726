"""Ground floor: AWS's own shapes, as the judge of what comes in and the mould of what goes out.

A shape is botocore's: `botocore.model.Shape` and its kin, read from the service models that boto3 itself is driven by.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from flatshare.core.errors import BadInput

Params = dict[str, Any]
"""A call's parameters, or its result: members named as in AWS's model, values checked by it, timestamps as epoch seconds."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where we admit more than AWS does."""

    patterns: Mapping[str, str] = field(default_factory=dict)
    """`Structure.Member` → the pattern in place of AWS's."""
    enum_prefixes: Mapping[str, str] = field(default_factory=dict)
    """Shape → a value that starts so is admitted beside AWS's list."""


class Reader:
    """Reads one call: the values in the model's types, and every rule that they break.

    A value of the wrong type raises BadInput at once, as AWS does; broken rules are gathered in `problems`. Nulls and members
    that the model does not know are left out.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.problems: list[str] = []

    def read(self, shape: Shape, value: Any, path: str = "", pattern: str | None = None) -> Any:
        read = getattr(self, f"_read_{shape.type_name}", None)
        parsed = read(shape, value, path) if read else _scalar(shape.type_name, value)
        self._check(shape, parsed, path, pattern or shape.metadata.get("pattern"))
        return parsed

    def _read_structure(self, shape: StructureShape, value: Any, path: str) -> Any:
        _require(value, dict, "structure")
        parsed = {}
        for name, member in shape.members.items():
            where = f"{path}.{_lower_camel(name)}" if path else _lower_camel(name)
            if value.get(name) is not None:
                parsed[name] = self.read(member, value[name], where, self._dialect.patterns.get(f"{shape.name}.{name}"))
            elif name in shape.required_members:
                self.problems.append(f"Value null at '{where}' failed to satisfy constraint: Member must not be null")
        return parsed

    def _read_list(self, shape: ListShape, value: Any, path: str) -> Any:
        _require(value, list, "list")
        return [self.read(shape.member, item, f"{path}.{n}.member") for n, item in enumerate(value, 1) if item is not None]

    def _read_map(self, shape: MapShape, value: Any, path: str) -> Any:
        _require(value, dict, "map")
        return {
            self.read(shape.key, key, f"{path}.key"): self.read(shape.value, item, f"{path}.{key}.member")
            for key, item in value.items()
            if item is not None
        }

    def _check(self, shape: Shape, value: Any, path: str, pattern: str | None) -> None:
        for constraint in _broken_constraints(shape, value, pattern, self._dialect.enum_prefixes.get(shape.name)):
            self.problems.append(f"Value '{_as_text(value)}' at '{path}' failed to satisfy constraint: Member must {constraint}")


def render(
    shape: Any,
    value: Any,
    *,
    moment: Callable[[float], Any] = lambda seconds: round(seconds, 3),
    blob: Callable[[bytes], Any] = lambda data: base64.b64encode(data).decode(),
) -> Any:
    """The value as plain data; `moment` and `blob` say how the protocol writes these.

    Unset members and structures with nothing in them are left out, for clients choke on both.
    """
    if shape.type_name == "structure":
        unknown = value.keys() - shape.members.keys()
        assert not unknown, f"{shape.name} has no member {unknown}. This is a bug."
        parts = {name: render(shape.members[name], item, moment=moment, blob=blob) for name, item in value.items() if item is not None}
        return {name: part for name, part in parts.items() if part != {}}
    if shape.type_name == "list":
        return [render(shape.member, item, moment=moment, blob=blob) for item in value]
    if shape.type_name == "map":
        return {key: render(shape.value, item, moment=moment, blob=blob) for key, item in value.items()}
    if shape.type_name == "timestamp":
        return moment(value)
    return blob(value) if shape.type_name == "blob" else value


def _broken_constraints(shape: Shape, value: Any, pattern: str | None, enum_prefix: str | None) -> list[str]:
    broken = []
    rules = shape.metadata
    is_private = enum_prefix is not None and isinstance(value, str) and value.startswith(enum_prefix)
    if "enum" in rules and value not in rules["enum"] and not is_private:
        broken.append(f"satisfy enum value set: [{', '.join(rules['enum'])}]")
    noun = "value" if isinstance(value, int | float) else "length"
    size = value if noun == "value" else len(value)
    if "min" in rules and size < rules["min"]:
        broken.append(f"have {noun} greater than or equal to {rules['min']}")
    if "max" in rules and size > rules["max"]:
        broken.append(f"have {noun} less than or equal to {rules['max']}")
    if pattern is not None and isinstance(value, str) and not _matches(pattern, value):
        broken.append(f"satisfy regular expression pattern: {pattern}")
    return broken


def _matches(pattern: str, value: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is None or compiled.fullmatch(value) is not None


# Java's classes as ranges of Python's, a little wider: \w takes letters, digits and the underscore together.
_JAVA_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{Z}": "\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    r"\p{Print}": "\u0020-\u007e",
    r"\p{ASCII}": "\u0000-\u007f",
}
_PARTS = re.compile(r"\\p\{\w+\}|\\.|[\[\]]|[^\\\[\]]+")


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The pattern, or None if it is Java's in a way that Python cannot say: then it is not enforced."""
    depth, parts = 0, []
    for part in _PARTS.findall(pattern):
        depth += (part == "[") - (part == "]")
        ranges = _JAVA_CLASSES.get(part)
        parts.append(part if ranges is None else ranges if depth else f"[{ranges}]")
    try:
        return re.compile("".join(parts))
    except re.error:
        return None


def _scalar(type_name: str, value: Any) -> Any:
    parse = _SCALARS.get(type_name)
    return value if parse is None else parse(value)


def _integer(value: Any) -> int:
    return _whole(value, "integer", bits=32)


def _long(value: Any) -> int:
    return _whole(value, "long", bits=64)


def _whole(value: Any, name: str, *, bits: int) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value != int(value) or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise _wrong_type(value, name)
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong_type(value, "float")
    return float(value)


def _timestamp(value: Any) -> float:
    if not isinstance(value, str):
        return _float(value)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _wrong_type(value, "timestamp") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _blob(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(_require(value, str, "blob"), validate=True)
    except binascii.Error:
        raise _wrong_type(value, "blob") from None


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "string": lambda value: _require(value, str, "string"),
    "boolean": lambda value: _require(value, bool, "boolean"),
    "integer": _integer,
    "long": _long,
    "float": _float,
    "double": _float,
    "timestamp": _timestamp,
    "blob": _blob,
}


def _require(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong_type(value, name)
    return value


def _wrong_type(value: Any, wanted: str) -> BadInput:
    return BadInput(f"{_as_text(value)} cannot be converted to a value of type {wanted}")


def _as_text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 1024 else f"{text[:1024]}…"


def _lower_camel(name: str) -> str:
    return name[:1].lower() + name[1:]
