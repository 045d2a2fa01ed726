from typing import Any

import orjson
import pytest

from flatshare.wire.agreement import agreement


def v2(rows: list[list[float]]) -> dict[str, Any]:
    data = [number for row in rows for number in row]
    return {"model_name": "a", "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": data}]}


@pytest.mark.parametrize(
    ("one", "other", "is_same", "cosine"),
    [
        ({"embeddings": [[1, 0], [0, 2]]}, {"embeddings": [[3, 0], [0, 1]]}, True, 1.0),
        ({"embeddings": [[1, 0]]}, {"embeddings": [[1, 0.01]]}, True, pytest.approx(0.99995, abs=1e-5)),
        ({"embeddings": [[1, 0], [1, 0]]}, {"embeddings": [[1, 0], [0, 1]]}, False, 0.5),
        ({"embeddings": [[1, 0]]}, v2([[1, 0]]), True, 1.0),
        ({"embeddings": [[0, 0]]}, {"embeddings": [[0, 0]]}, True, 1.0),
        ({"embeddings": [[0, 0]]}, {"embeddings": [[1, 0]]}, False, 0.0),
        ({"embeddings": [[1, 0]]}, {"embeddings": [[1, 0, 0]]}, False, None),
        ({"embeddings": []}, {"embeddings": []}, True, None),
        ({"label": "spam", "model": {"name": "a"}}, {"label": "spam", "model": {"name": "b"}}, True, None),
        ({"label": "spam"}, {"label": "ham"}, False, None),
        ({"embeddings": "x"}, {"embeddings": "x"}, True, None),
        ([1, 2], [1, 2], True, None),
        ([1, 2], {"a": 1}, False, None),
    ],
)
def test_answers_agree_in_what_they_say(one: object, other: object, *, is_same: bool, cosine: float | None) -> None:
    found = agreement(orjson.dumps(one), orjson.dumps(other))
    assert (found.is_same, found.cosine) == (is_same, cosine)


def test_bytes_that_are_not_json_agree_if_they_are_equal() -> None:
    assert agreement(b"\xff\x00", b"\xff\x00").is_same
    assert not agreement(b"\xff\x00", b"{}").is_same
