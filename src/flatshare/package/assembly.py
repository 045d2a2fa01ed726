"""A layout and its sources become a list of files, each with where it comes from. Nothing is written yet."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flatshare.core.errors import BadLayout
from flatshare.core.sizes import MIB
from flatshare.package.layout import Check, FileRule, Layout, Part, fill
from flatshare.store.leftovers import is_left_out

_MAX_CHECKED_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a package: its path there, and its content: a file of this disk, or bytes."""

    path: str
    content: Path | bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class PlannedPart:
    name: str
    files: tuple[PlannedFile, ...]
    """Sorted by path."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a layout is applied to."""

    sources: Mapping[str, Path]
    """Folders or files by name; one without a name has the key ""."""
    values: Mapping[str, str]
    code: Mapping[str, bytes] | None = None
    """Files of the inference code by path."""


def assemble(layout: Layout, ingredients: Ingredients) -> tuple[PlannedPart, ...]:
    """Raises BadLayout for a file that is missing, a source or variable that is not there, two files in one place, a failed check."""
    if layout.needs_code and ingredients.code is None:
        raise BadLayout(f"layout {layout.layout} takes inference code: name it with --code NAME or --code NAME@VERSION")
    _require_sources(layout, ingredients)
    parts = tuple(_part(layout, part, ingredients) for part in layout.parts)
    for part in parts:
        for check in layout.checks:
            _check(part, check)
    return parts


def source_name(layout: Layout, part: Part, rule: FileRule | None = None) -> str:
    """Which source a rule's files come from."""
    own = (rule.source if rule else None) or part.source
    return own if own is not None else part.name if len(layout.parts) > 1 else ""


def _require_sources(layout: Layout, ingredients: Ingredients) -> None:
    wanted = {source_name(layout, part, rule) for part in layout.parts for rule in part.files if rule.source_pattern is not None}
    given = set(ingredients.sources)
    if wanted == given:
        return
    usage = " ".join(f"{name}=PATH" if name else "PATH" for name in sorted(wanted)) or "no source"
    raise BadLayout(
        f"layout {layout.layout} takes {usage}: it was given {', '.join(sorted(name or 'PATH' for name in given)) or 'nothing'}"
    )


def _part(layout: Layout, part: Part, ingredients: Ingredients) -> PlannedPart:
    found: dict[str, PlannedFile] = {}
    for index, rule in enumerate(part.files):
        where = f"layout {layout.layout}, part '{part.name}', file {index}" if part.name else f"layout {layout.layout}, file {index}"
        for file in _files(layout, part, rule, ingredients, where):
            path = _safe(file.path, where)
            before = found.setdefault(path, PlannedFile(path, file.content))
            if before.content != file.content:  # the same file by two patterns is no contradiction
                raise BadLayout(f"{where}: '{path}' is made by an earlier rule already, from something else")
    for path in found:
        parent = next((parent for parent in found if path.startswith(f"{parent}/")), None)
        if parent is not None:
            raise BadLayout(f"layout {layout.layout}: '{parent}' would be both a file and a folder")
    return PlannedPart(part.name, tuple(found[path] for path in sorted(found)))


def _files(layout: Layout, part: Part, rule: FileRule, ingredients: Ingredients, where: str) -> Iterator[PlannedFile]:
    to = None if rule.to is None else fill(rule.to, ingredients.values, where)
    if rule.template is not None:
        assert to is not None, "a template without a place passed the layout's checks. This is a bug."
        yield PlannedFile(to, fill(rule.template, ingredients.values, where).encode())
    elif rule.code:
        assert ingredients.code is not None, "code was not asked for. This is a bug."
        yield from (PlannedFile(f"{to or ''}{path}", data) for path, data in ingredients.code.items())
    else:
        assert rule.source_pattern is not None, "a rule without a kind passed the layout's checks. This is a bug."
        yield from _from_source(ingredients.sources[source_name(layout, part, rule)], rule, to, ingredients.values, where)


def _from_source(source: Path, rule: FileRule, to: str | None, values: Mapping[str, str], where: str) -> Iterator[PlannedFile]:
    pattern = fill(rule.source_pattern or "", values, where)
    if not source.exists():
        raise BadLayout(f"{where}: the source '{source}' does not exist")
    if source.is_file():
        matches = {source.name: source} if Path(source.name).match(pattern) else {}
    else:
        below = _safe(pattern, where)
        matches = {
            path.relative_to(source).as_posix(): path
            for path in source.glob(below)
            if path.is_file() and not is_left_out(path.relative_to(source).parts)
        }
    if not matches and not rule.optional:
        raise BadLayout(f"{where}: '{source}' has no file '{pattern}'")
    if to is not None and not to.endswith("/") and len(matches) > 1:
        raise BadLayout(f"{where}: '{pattern}' finds {len(matches)} files and 'to' names one: end it with a slash for a folder")
    for name, path in matches.items():
        yield PlannedFile(name if to is None else f"{to}{name}" if to.endswith("/") else to, path)


def _safe(path: str, where: str) -> str:
    if not path or path.startswith("/") or "\\" in path or any(part in {"", ".", ".."} for part in path.split("/")):
        raise BadLayout(f"{where}: '{path}' must be a plain path below the package or source, without '..'")
    return path


def _check(part: PlannedPart, check: Check) -> None:
    file = next((file for file in part.files if file.path == check.file), None)
    if file is None:
        raise BadLayout(f"a check reads '{check.file}', and the package has no such file")
    if file.size_bytes > _MAX_CHECKED_BYTES:
        raise BadLayout(f"a check reads '{check.file}', which is too large to be read")
    try:
        value: Any = orjson.loads(file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    except orjson.JSONDecodeError as error:
        raise BadLayout(f"{check.file} is not valid JSON: {error}") from error
    for key in check.key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value not in check.one_of:
        hint = f": {check.hint}" if check.hint else ""
        raise BadLayout(f"{check.file} says {check.key} = {value!r}, this layout takes {', '.join(map(repr, check.one_of))}{hint}")
