"""A model's answer as a reader sees it, by task."""

from typing import Any

import pytest

from flatshare.cli.answers import lines_of

ANSWERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"embeddings": [[0.5, -0.25]]}, ["[+0.5000, -0.2500, … 2 numbers]"]),
    ({"predictions": [[{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]]}, ["a 0.7500  b 0.2500"]),
    ({"predictions": [[{"label": str(n), "score": 0.25} for n in range(4)]]}, ["0 0.2500  1 0.2500  2 0.2500  … 4 labels"]),
    (
        {"predictions": [[{"label": "O", "score": 1.0, "piece": "order", "begin": 4, "end": 9}], []]},
        ["order            4-9       O 1.0000", ""],
    ),
    ({"results": [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}]}, ["0.9000  passage 1", "0.1000  passage 0"]),
    ({"texts": ["hello"]}, ["hello"]),
    ({"model_name": "m", "outputs": []}, ['{"model_name":"m","outputs":[]}']),
]


@pytest.mark.parametrize(("answer", "lines"), ANSWERS)
def test_an_answer_is_shown_by_what_it_holds(answer: dict[str, Any], lines: list[str]) -> None:
    assert list(lines_of(answer)) == lines
