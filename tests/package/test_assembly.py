"""A layout and its sources become a list of files, or a sentence that says why not."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from flatshare.core.errors import BadLayout
from flatshare.package.assembly import Ingredients, PlannedPart, assemble
from flatshare.package.layout import parse_layout


def _assemble(files: str, sources: Mapping[str, Path], code: Mapping[str, bytes] | None = None, more: str = "") -> tuple[PlannedPart, ...]:
    text = f"layout: mine\nkind: embedding\nsample: {{body: {{}}}}\nvariables: {{v: {{default: one}}}}\n{more}\nparts: [{{files: {files}}}]"
    return assemble(parse_layout(text, "mine"), Ingredients(sources, {"v": "one"}, code))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.json", "b.json", "sub/c.bin", ".hidden.json"):
        (tmp_path / name).write_text(f'{{"is": "{name}", "deep": {{"er": 1}}}}')
    return tmp_path


def _paths(parts: tuple[PlannedPart, ...]) -> list[str]:
    return [file.path for file in parts[0].files]


def test_patterns_templates_and_code_make_a_sorted_list(source: Path) -> None:
    files = '[{from: "*.json"}, {from: sub/c.bin, to: "1/${v}.bin"}, {template: "v=${v}", to: config.pbtxt}, {code: true, to: 1/}]'
    parts = _assemble(files, {"": source}, {"model.py": b"pass"})
    assert _paths(parts) == ["1/model.py", "1/one.bin", "a.json", "b.json", "config.pbtxt"]
    assert parts[0].files[-1].content == b"v=one"


def test_what_is_optional_may_be_missing_and_what_is_found_twice_counts_once(source: Path) -> None:
    assert _paths(_assemble('[{from: a.json}, {from: "*.json"}, {from: x, optional: true}]', {"": source})) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ("[{from: nope.json}]", "has no file 'nope.json'"),
        ("[{from: ../a.json}]", "must be a plain path"),
        ("[{from: a.json, to: ../../etc}]", "must be a plain path"),
        ("[{from: a.json, to: x}, {from: b.json, to: x}]", "'x' is made by an earlier rule already"),
        ("[{from: a.json, to: x}, {from: b.json, to: x/y}]", "both a file and a folder"),
        ('[{from: "*.json", to: x}]', "finds 2 files and 'to' names one"),
        ('[{from: a.json}, {template: "${w}", to: x}]', "uses the variable 'w'"),
        ("[{code: true}]", "takes inference code"),
        ("[{from: a.json, source: other}]", "takes other=PATH"),
    ],
)
def test_what_does_not_fit_is_named(source: Path, files: str, sentence: str) -> None:
    with pytest.raises(BadLayout, match=sentence):
        _assemble(files, {"": source})


def test_a_source_that_is_missing_or_too_many_is_named(source: Path, tmp_path: Path) -> None:
    for sources, sentence in (({}, "was given nothing"), ({"x": source}, "it was given x"), ({"": tmp_path / "no"}, "does not exist")):
        with pytest.raises(BadLayout, match=sentence):
            _assemble("[{from: a.json}]", sources)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        ("{file: a.json, key: deep.er, one_of: [2], hint: try b}", r"a.json says deep.er = 1, this layout takes 2: try b"),
        ("{file: a.json, key: no.such, one_of: [2]}", "no.such = None"),
        ("{file: c.json, key: x, one_of: [2]}", "has no such file"),
    ],
)
def test_a_check_that_fails_says_what_it_wanted(source: Path, check: str, sentence: str) -> None:
    with pytest.raises(BadLayout, match=sentence):
        _assemble("[{from: a.json}]", {"": source}, more=f"checks: [{check}]")


def test_a_check_that_holds_says_nothing(source: Path) -> None:
    assert _assemble("[{from: a.json}]", {"": source}, more="checks: [{file: a.json, key: deep.er, one_of: [1]}]")
