"""Layouts are read strictly: what is wrong is said, with its place."""

import pytest

from flatshare.core.errors import BadLayout
from flatshare.package.layout import fill, parse_layout, read_layout, shipped, values_of

GOOD = """
layout: mine
kind: embedding
variables:
  size: {pattern: "[0-9]+", default: "8"}
  name: {}
parts:
  - files:
      - from: config.json
      - template: "max: ${size}"
        to: "conf/${name}.txt"
sample:
  body: {inputs: hello}
"""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_layout_is_sound_and_says_what_it_is_for(name: str) -> None:
    layout = read_layout(name)
    assert layout.layout == name
    assert layout.description.endswith(".")


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("kind: embedding", "kind: embedding\ntypo: 1", "unknown field `typo`"),
        ("kind: embedding", "", "missing required field `kind`"),
        ("from: config.json", "form: config.json", r"unknown field `form` - at `\$.parts"),
        ("layout: mine", "layout: ../mine", "matching regex"),
        ("layout: mine", "layout: mine\nlayout: yours", "'layout' occurs twice"),
        ("layout: mine", "layout: [", "is not YAML"),
        ("layout: mine", "layout: !!python/object:os.system x", "is not YAML"),
        ("- from: config.json", "- from: config.json\n        code: true", "exactly one of 'from', 'template' and 'code'"),
        ('to: "conf/${name}.txt"', "", "needs a 'to'"),
        ("parts:", "parts:\n  - {name: a, files: [{from: x}]}", "without a name can only be the only one"),
    ],
)
def test_a_layout_that_is_wrong_says_where(before: str, after: str, sentence: str) -> None:
    assert before in GOOD
    with pytest.raises(BadLayout, match=sentence):
        parse_layout(GOOD.replace(before, after), "mine.yaml")


def test_two_parts_with_one_name_are_refused() -> None:
    parts = "parts:\n  - {name: query, files: [{from: x}]}\n  - {name: query, files: [{from: x}]}\nsample: {body: {}}"
    with pytest.raises(BadLayout, match="two parts have the name 'query'"):
        parse_layout(f"layout: mine\nkind: embedding\n{parts}", "mine.yaml")


def test_variables_have_defaults_forms_and_must_be_known() -> None:
    layout = parse_layout(GOOD, "mine.yaml")
    assert values_of(layout, {"name": "x"}) == {"size": "8", "name": "x"}
    for given, sentence in (
        ({}, "needs name: give it with --set name="),
        ({"name": "x", "size": "y"}, "does not match"),
        ({"nmae": "x"}, "has no variable nmae"),
    ):
        with pytest.raises(BadLayout, match=sentence):
            values_of(layout, given)


def test_a_template_with_an_undefined_variable_is_refused() -> None:
    assert fill("$$ ${a}", {"a": "1"}, "here") == "$ 1"
    with pytest.raises(BadLayout, match="here uses the variable 'b'"):
        fill("${b}", {"a": "1"}, "here")
    with pytest.raises(BadLayout, match="write a dollar sign as"):
        fill("$ 1", {}, "here")


def test_the_digest_is_of_what_a_layout_says_not_of_how(tmp_path: object) -> None:
    assert parse_layout(GOOD, "a").digest == parse_layout("# a remark\n" + GOOD, "b").digest
    assert parse_layout(GOOD, "a").digest != parse_layout(GOOD.replace('"8"', '"9"'), "a").digest


def test_a_name_that_is_no_layout_lists_those_that_are() -> None:
    with pytest.raises(BadLayout, match="one of autocomplete, classifier"):
        read_layout("encoder2")
    with pytest.raises(BadLayout, match="does not exist"):
        read_layout("nowhere.yaml")
