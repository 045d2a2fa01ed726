"""A layout: how the files of one type of model are put together, as YAML that is read strictly.

Unknown keys, wrong types and names that occur twice are errors, each with the place in the file. `${name}` in `to` and `template`
stands for a variable; there are no conditions and no loops, so that a layout reads as the tree that it makes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from flatshare.core.errors import BadLayout

_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_MAX_BYTES = 2**20


class Variable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that whoever packages may, or must, say."""

    description: str = ""
    default: str | None = None
    pattern: str = ".*"


class FileRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source_pattern": "from"}):
    """Where files of a part come from: exactly one of `from` (a path or a pattern in the source), `template` (text) and `code`."""

    source_pattern: str | None = None
    source: str | None = None
    template: str | None = None
    code: bool = False
    to: str | None = None
    optional: bool = False


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One artifact: a target model of its own."""

    files: Annotated[tuple[FileRule, ...], Meta(min_length=1)]
    name: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")] = ""
    source: str | None = None
    """Which source its files come from, unless a file says otherwise. Default: its own name, or the only one."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a JSON file of every part that has it must say."""

    file: str
    key: str
    one_of: Annotated[tuple[str | int | bool, ...], Meta(min_length=1)]
    hint: str = ""


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that the packaged model must answer before it is published: a plain body, or one in v2 form."""

    body: dict[str, object]


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layout: _Word
    kind: Annotated[str, Meta(min_length=1, max_length=63)]
    """What the model is for; its endpoint follows from it."""
    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]
    sample: Sample | None = None
    """None: one is made of zeros by the model's own signature."""
    description: str = ""
    variables: dict[_Word, Variable] = {}
    checks: tuple[Check, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of what it says, however the YAML was spelled."""
        return sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def needs_code(self) -> bool:
        return any(rule.code for part in self.parts for rule in part.files)


def shipped() -> list[str]:
    """Names of the layouts that come with flatshare."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read_layout(name_or_path: str) -> Layout:
    """A shipped layout by its name, or one in a file. Raises BadLayout with what is wrong and where."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise BadLayout(f"layout file '{path}' does not exist, or has more than {_MAX_BYTES} bytes")
        return parse_layout(path.read_text(errors="replace"), str(path))
    if name_or_path not in shipped():
        raise BadLayout(f"there is no layout '{name_or_path}': give a file that ends in .yaml, or one of {', '.join(shipped())}")
    return parse_layout((_folder() / f"{name_or_path}.yaml").read_text(), name_or_path)


def parse_layout(text: str, where: str) -> Layout:
    """Raises BadLayout."""
    try:
        layout = msgspec.convert(yaml.load(text, _StrictLoader), Layout)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise BadLayout(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    except msgspec.ValidationError as error:
        raise BadLayout(f"{where}: {error}") from error
    _require_sense(layout, where)
    return layout


def values_of(layout: Layout, given: Mapping[str, str]) -> dict[str, str]:
    """Every variable's value: what was given, or its default. Raises BadLayout for one that is unknown, missing or of another form."""
    if unknown := given.keys() - layout.variables.keys():
        raise BadLayout(f"layout {layout.layout} has no variable {_listed(unknown)}: it has {_listed(layout.variables) or 'none'}")
    values = {name: given.get(name, variable.default) for name, variable in layout.variables.items()}
    if missing := [name for name, value in values.items() if value is None]:
        raise BadLayout(f"layout {layout.layout} needs {_listed(missing)}: give it with --set {missing[0]}=VALUE")
    for name, value in values.items():
        _require_form(layout.variables[name], name, str(value))
    return {name: str(value) for name, value in values.items()}


def fill(text: str, values: Mapping[str, str], where: str) -> str:
    """Raises BadLayout for a variable that is not defined."""
    try:
        return Template(text).substitute(values)
    except KeyError as error:
        raise BadLayout(f"{where} uses the variable {error}, which is not among the layout's variables: add it there") from error
    except ValueError as error:
        raise BadLayout(f"{where}: {error}; write a dollar sign as $$") from error


def _require_form(variable: Variable, name: str, value: str) -> None:
    # msgspec has the pattern engine that the schema itself uses; a broken pattern is the layout's fault.
    try:
        msgspec.convert(value, Annotated[str, Meta(pattern=f"^(?:{variable.pattern})$")])
    except msgspec.ValidationError as error:
        raise BadLayout(f"variable {name} is {value!r}, which does not match {variable.pattern!r}") from error


def _require_sense(layout: Layout, where: str) -> None:
    twice = [name for name, count in Counter(part.name for part in layout.parts).items() if count > 1]
    if twice:
        raise BadLayout(f"{where}: two parts have the name '{twice[0]}': each is a target model, and needs a name of its own")
    if len(layout.parts) > 1 and any(not part.name for part in layout.parts):
        raise BadLayout(f"{where}: a part without a name can only be the only one")
    for part in layout.parts:
        for index, rule in enumerate(part.files):
            kinds = (rule.source_pattern is not None) + (rule.template is not None) + rule.code
            if kinds != 1:
                raise BadLayout(f"{where}: file {index} of part '{part.name}' needs exactly one of 'from', 'template' and 'code'")
            if rule.template is not None and rule.to is None:
                raise BadLayout(f"{where}: the template in file {index} of part '{part.name}' needs a 'to'")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _folder() -> Traversable:
    return resources.files("flatshare.package") / "layouts"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
