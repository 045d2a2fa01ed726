"""Parameters of models that write: every one is checked, and nothing but a sentence comes of nonsense."""

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatshare.core.call import InferCall, Scalar
from flatshare.core.errors import BadInput
from flatshare.core.generation import Completion, Decoding, Finish, Generated, Piece
from flatshare.wire import generation

NAMES = st.sampled_from(
    ["max_tokens", "temperature", "top_k", "top_p", "seed", "n", "beams", "stop", "typed", "session", "deadline_ms", "details", "x"]
)


def test_without_parameters_it_is_greedy() -> None:
    assert generation.parse({}) == Decoding()
    assert generation.parse({"stream": True}) == Decoding()


def test_names_that_other_servers_use_are_understood() -> None:
    found = generation.parse({"max_new_tokens": 5, "num_beams": 2, "min_new_tokens": 1, "details": True})
    assert found == Decoding(max_tokens=5, beams=2, min_tokens=1, has_details=True)


@pytest.mark.parametrize(("value", "stops"), [("a", ("a",)), ('["a", "b"]', ("a", "b")), ("[a", ("[a",))])
def test_stop_strings_are_one_or_a_list(value: str, stops: tuple[str, ...]) -> None:
    assert generation.parse({"stop": value}).stop == stops


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine the first example may take a second
@given(st.dictionaries(NAMES, st.one_of(st.text(max_size=9), st.integers(), st.floats(), st.booleans()), max_size=4))
def test_anything_is_understood_or_refused(parameters: dict[str, Scalar]) -> None:
    try:
        found = generation.parse(parameters)
    except BadInput:
        return
    assert found.rows <= generation.MAX_ROWS
    assert "" not in found.stop


def test_an_answer_names_what_became_of_each_text() -> None:
    texts = tuple(Completion(0, choice, f"text {choice}", 3, Finish.STOP, -1.5) for choice in range(2))
    generated = Generated(texts, (7,), (2,))
    result = generation.result_of(generated, InferCall({}), Decoding(n=2, temperature=1.0))
    assert result.output("text").texts() == ["text 0", "text 1"]
    assert result.output("finish_reason").texts() == ["stop", "stop"]
    assert result.output("logprob").data.tolist() == [-1.5, -1.5]
    assert [tensor.name for tensor in generation.result_of(generated, InferCall({}, wanted=("text",)), Decoding()).outputs] == ["text"]


def test_parts_are_lines_or_events() -> None:
    piece = Piece(0, 1, "é\n")
    assert orjson.loads(generation.LINES.piece(piece)) == {"prompt": 0, "choice": 1, "text": "é\n"}
    event = generation.EVENTS.piece(piece)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert generation.LINES.error("no", "BadInput").startswith(b'{"error":')
