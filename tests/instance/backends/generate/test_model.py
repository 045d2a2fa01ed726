"""Calls to a model that writes: what they may ask, what they are refused, and what they leave behind."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatshare.core.call import InferCall
from flatshare.core.errors import Abandoned, BadInput, Overloaded
from flatshare.core.generation import Finish, Generated, Piece
from flatshare.core.ids import ModelKey
from flatshare.core.tensor import text_tensor
from flatshare.instance.backends.base import StopSign
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.instance.backends.generate.model import GeneratingModel
from flatshare.instance.board import Board
from tests.instance.backends.generate.conftest import Load, ask, texts_of
from tests.writers import TEMPLATE, byte_tokenizer, greedy, llama, t5

FOR_EVER: dict[str, Any] = {"max_tokens": 400, "min_tokens": 400}


class Ear:
    """A listener that a test can wait for."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.result: Generated | None = None
        self.error: Exception | None = None
        self.has_begun, self.is_over = threading.Event(), threading.Event()

    def piece(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.has_begun.set()

    def generated(self, generated: Generated) -> None:
        self.result = generated
        self.is_over.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self.is_over.set()


def prepared(model: GeneratingModel, text: str = "the", **parameters: Any) -> Any:
    return model.prepare(InferCall({"text": text_tensor("text", [text])}, parameters))


def wait(event: threading.Event) -> None:
    assert event.wait(60), "it did not happen"


@pytest.fixture
def model(load: Callable[..., GeneratingModel]) -> GeneratingModel:
    return load(llama(1), tokenizer_config={"chat_template": TEMPLATE, "bos_token": "!"})


def test_pieces_put_together_are_the_text(model: GeneratingModel) -> None:
    ear = Ear()
    model.start(prepared(model, "the order", max_tokens=40), ear)
    wait(ear.is_over)
    assert ear.result is not None
    assert "".join(piece.text for piece in ear.pieces) == ear.result.completions[0].text
    assert len(ear.pieces) > 1
    assert not any("�" in piece.text[:-1] and piece.text.endswith("�") for piece in ear.pieces[:-1])


def test_equal_seeds_write_equal_texts_and_others_do_not(model: GeneratingModel) -> None:
    def drawn(**more: Any) -> list[str]:
        return texts_of(ask(model, "the", max_tokens=20, temperature=1.0, n=4, **more))

    first = drawn(seed=5)
    assert drawn(seed=5) == first
    assert len(set(first)) > 1
    assert drawn(seed=6) != first
    assert drawn(seed=5, top_k=1) == texts_of(ask(model, "the", max_tokens=20)) * 4


def test_log_probabilities_are_the_models(model: GeneratingModel, load: Load) -> None:
    import torch

    tokenizer, torch_model = byte_tokenizer(), llama(1)
    ids = tokenizer.encode("the order").ids
    written = greedy(torch_model, ids, 12)
    with torch.no_grad():
        scores = torch_model(torch.tensor([ids + written])).logits[0].log_softmax(-1)
    wanted = sum(float(scores[len(ids) - 1 + place, token]) for place, token in enumerate(written))
    found = ask(model, "the order", max_tokens=12, details=True).output("logprob").data
    np.testing.assert_allclose(found, [wanted], rtol=1e-4)


def test_a_stop_string_ends_the_text_before_it_and_no_part_of_it_is_shown(model: GeneratingModel) -> None:
    whole = texts_of(ask(model, "the order", max_tokens=40))[0]
    stop = whole[5:8]
    ear = Ear()
    model.start(prepared(model, "the order", max_tokens=40, stop=stop), ear)
    wait(ear.is_over)
    assert ear.result is not None
    assert ear.result.completions[0].text == whole[: whole.index(stop)]
    assert ear.result.completions[0].finish is Finish.STOP
    assert "".join(piece.text for piece in ear.pieces) == whole[: whole.index(stop)]


@pytest.mark.parametrize("make", [t5, llama])
@pytest.mark.parametrize("typed", ["th", "the ord", "to pay ", "refu", "help me", "x y z.?", "re"])
def test_a_completion_goes_on_with_what_was_typed(load: Load, make: Callable[[int], Any], typed: str) -> None:
    loaded = load(make(4))
    for more in ({}, {"beams": 3}, {"temperature": 1.0, "seed": 1}):
        result = ask(loaded, "help", typed=typed, max_tokens=10, details=True, **more)
        text = texts_of(result)[0]
        assert not text.startswith(typed), "only what follows is answered"
        assert result.output("tokens").data[0] >= 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(typed=st.text(alphabet="abcdefghijklmnopqrstuvwxyz .,!?éß😀", max_size=12))
def test_whatever_was_typed_the_tokens_spell_it_first(model: GeneratingModel, typed: str) -> None:
    """Byte-level tokens can spell anything: prompt, typed and answer together are what the model has before it."""
    task = prepared(model, "the ", typed=typed, max_tokens=16, min_tokens=1)[0]
    ear = Ear()
    model.start((task,), ear)
    wait(ear.is_over)
    assert ear.error is None
    tokenizer = byte_tokenizer()
    read = tokenizer.decode(list(task.prompt.text))
    assert (read.encode() + task.unfinished) == ("the " + typed).encode()


def test_a_session_spares_what_it_has_read_and_changes_nothing(load: Load) -> None:
    loaded = load(llama(2))
    text = "the order to pay you " * 20
    fresh = texts_of(ask(loaded, text + "help", max_tokens=8))
    first = ask(loaded, text, max_tokens=8, session="s")
    again = ask(loaded, text + "help", max_tokens=8, session="s")
    assert first.parameters["reused_tokens"] == (0,)
    reused = again.parameters["reused_tokens"]
    assert isinstance(reused, tuple)
    assert reused[0] > 100
    assert texts_of(again) == fresh
    assert ask(loaded, text + "help", max_tokens=8, session="other").parameters["reused_tokens"] == (0,)


def test_a_session_of_t5_spares_the_text_while_the_answer_is_typed(load: Load) -> None:
    loaded = load(t5(2))
    text = "the order to pay you " * 5
    for typed in ("the ", "the or", "the order ", "the order to me"):
        fresh = texts_of(ask(loaded, text, typed=typed, max_tokens=8))
        assert texts_of(ask(loaded, text, typed=typed, max_tokens=8, session="s")) == fresh
    assert ask(loaded, text, typed="the order to me", max_tokens=8, session="s").parameters["reused_tokens"] != (0,)
    assert ask(loaded, "another text", typed="the order to me", max_tokens=8, session="s").parameters["reused_tokens"] == (0,)


def test_no_model_sees_anothers_session_though_their_weights_are_equal(load: Load, backend: GenerateBackend) -> None:
    one, other = load(llama(2)), load(llama(2))
    ask(one, "the order", max_tokens=4, session="s")
    assert ask(other, "the order", max_tokens=4, session="s").parameters["reused_tokens"] == (0,)
    assert backend.statistics()["generation_sessions"] == 2


def test_sessions_go_with_their_model(load: Load, backend: GenerateBackend) -> None:
    model = load(llama(2))
    ask(model, "the order", max_tokens=4, session="s")
    assert backend.statistics()["generation_session_bytes"] > 0
    del model
    ask(load(llama(3)), "the", max_tokens=1)  # passes through the stepper behind the news
    assert backend.statistics()["generation_sessions"] == 0
    assert backend.statistics()["generation_session_bytes"] == 0


def test_a_cancelled_call_stops_the_work_and_frees_its_rows(model: GeneratingModel, backend: GenerateBackend) -> None:
    ear = Ear()
    job = model.start(prepared(model, **FOR_EVER), ear)
    wait(ear.has_begun)
    model.cancel(job)
    wait(ear.is_over)
    assert isinstance(ear.error, Abandoned)
    assert len(ear.pieces) < 400
    ask(model, "the", max_tokens=2)
    steps = backend.statistics()["generation_steps"]
    ask(model, "the", max_tokens=2)
    assert backend.statistics()["generation_steps"] - steps == 1, "somebody else is still being stepped"


def test_a_run_whose_caller_has_left_ends(model: GeneratingModel) -> None:
    stop = StopSign()
    stop.set()
    with pytest.raises(Abandoned):
        model.run(InferCall({"text": text_tensor("text", ["the"])}, FOR_EVER), stop)


def test_a_deadline_ends_the_text_and_what_was_written_is_the_answer(model: GeneratingModel) -> None:
    result = ask(model, "the", deadline_ms=1, **FOR_EVER)
    assert result.output("finish_reason").texts() == ["deadline"]
    assert result.output("tokens").data[0] < 400


def test_a_conversation_becomes_the_prompt_of_the_template(model: GeneratingModel) -> None:
    talk = '[{"role": "user", "content": "help"}]'
    result = model.run(InferCall({"messages": text_tensor("messages", [talk])}, {"max_tokens": 12}))
    assert texts_of(result) == texts_of(ask(model, "!user: help\nanswer: ", max_tokens=12))


WRONG = {
    "a prompt that is too long": (["the order " * 400], {}, "tokens and 64 new ones are more than the model's 512 positions"),
    "an absurd prompt": (["x" * 100_000], {}, "100000 characters"),
    "too many tokens": (["a"], {"max_tokens": 600}, "more than the model's 512 positions"),
    "no prompt": ([], {}, "0 prompts in one call"),
    "an empty prompt": ([""], {}, "send at least one word"),
    "an empty stop string": (["a"], {"stop": ""}, "an empty one would stop at once"),
    "too many beams": (["a"], {"beams": 9}, "'beams' must be an integer from 1 to 8"),
    "more texts than beams": (["a"], {"beams": 2, "n": 3}, "2 beams cannot give 3 texts"),
    "several greedy texts": (["a"], {"n": 2}, "greedy gives one text"),
    "an unknown parameter": (["a"], {"temprature": 1}, "'temprature' is not known: known are max_tokens"),
}


@pytest.mark.parametrize(("texts", "parameters", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_written_is_refused_with_a_sentence(
    model: GeneratingModel, texts: list[str], parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        ask(model, *texts, **parameters)


@pytest.mark.parametrize("talk", ["{}", "[]", "no", '[{"role": "user"}]', '[{"role": "user", "content": 1}]'])
def test_messages_that_are_none_are_refused(model: GeneratingModel, talk: str) -> None:
    with pytest.raises(BadInput, match='"messages"'):
        model.run(InferCall({"messages": text_tensor("messages", [talk])}))


def test_a_model_without_a_template_says_so(load: Load) -> None:
    loaded = load(t5(1))
    with pytest.raises(BadInput, match="no chat template"):
        loaded.run(InferCall({"messages": text_tensor("messages", ['[{"role": "user", "content": "a"}]'])}))


def test_more_cache_than_there_is_is_refused(model: GeneratingModel, backend: GenerateBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.stepper.memory, "limit_bytes", 50_000)
    with pytest.raises(BadInput, match="MiB of cache"):
        ask(model, "a", max_tokens=400)


def test_texts_wait_for_memory_that_others_have(model: GeneratingModel, backend: GenerateBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one at a time: the sessions of the first give way, and all are answered."""
    monkeypatch.setattr(backend.stepper.memory, "limit_bytes", 40_000)
    result = ask(model, *["the"] * 6, max_tokens=30)
    assert len(set(texts_of(result))) == 1
    assert ask(model, "the", max_tokens=30, session="a").parameters["reused_tokens"] == (0,)
    assert texts_of(ask(model, "the", max_tokens=30)) == texts_of(result)[:1]


def test_more_calls_than_may_wait_are_told_to_come_later(load: Load, backend: GenerateBackend) -> None:
    model = load(llama(1))
    ears = [Ear() for _ in range(64)]
    jobs = [model.start(prepared(model, **FOR_EVER), ear) for ear in ears]
    with pytest.raises(Overloaded):
        model.start(prepared(model), Ear())
    for job in jobs:
        model.cancel(job)
    for ear in ears:
        wait(ear.is_over)


def test_what_fails_in_the_engine_is_told_to_each_and_the_next_is_served(model: GeneratingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model._network
    ear = Ear()
    with monkeypatch.context() as broken:
        broken.setattr(network, "step", lambda _: 1 / 0)
        model.start(prepared(model, max_tokens=5), ear)
        wait(ear.is_over)
    assert isinstance(ear.error, ZeroDivisionError)
    assert texts_of(ask(model, "the", max_tokens=5))


class Chain(Ear):
    """Asks again as soon as it is answered, on the stepper's thread: there is no moment without a call."""

    def __init__(self, model: GeneratingModel, tasks: Any, times: int, other: Ear) -> None:
        super().__init__()
        self._model, self._tasks, self._left, self._other = model, tasks, times, other
        self.others_pieces: list[int] = []

    def generated(self, generated: Generated) -> None:
        self.others_pieces.append(len(self._other.pieces))
        self._left -= 1
        if self._left:
            self._model.start(self._tasks, self)
        else:
            super().generated(generated)


def test_eight_long_texts_of_one_tenant_and_short_ones_of_another_both_go_on(load: Load, backend: GenerateBackend) -> None:
    """Counted in steps: while twenty short texts are written one after the other, the long ones neither end nor stand still."""
    one, other = load(llama(1)), load(llama(2))
    long = Ear()
    job = one.start(prepared(one, n=8, temperature=1.0, seed=1, **FOR_EVER), long)
    wait(long.has_begun)
    short = Chain(other, prepared(other, max_tokens=6, min_tokens=6), 20, long)
    other.start(short._tasks, short)
    wait(short.is_over)
    assert not long.is_over.is_set(), "the short ones were kept waiting for the long ones' end"
    first, last = short.others_pieces[0], short.others_pieces[-1]
    assert last - first >= 8, "the long ones stood still while short ones were written"
    one.cancel(job)
    wait(long.is_over)


def test_whose_turn_it_is_stands_on_the_board(model: GeneratingModel, tmp_path: Path) -> None:
    """So that the next instance knows whom to suspect, should this one die."""
    path = tmp_path / "name.1.board"
    board = Board(path)
    model.mark_turns(lambda: board.marked(ModelKey("the-model")))
    found: list[bytes] = []

    class Looking(Ear):
        def piece(self, piece: Piece) -> None:
            found.append(path.read_bytes())

    ear = Looking()
    model.start(prepared(model, max_tokens=12), ear)
    wait(ear.is_over)
    assert found
    assert all(b"the-model" in content for content in found)
    ask(model, "the", max_tokens=1)  # passes through the stepper behind the last turn
    until = time.monotonic() + 30
    while b"the-model" in path.read_bytes() and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert b"the-model" not in path.read_bytes()
    board.close()


def test_the_session_that_was_asked_for_last_is_kept(load: Load, backend: GenerateBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all models: room for two sessions, a third makes the longest unused give way."""
    one, other = load(llama(2)), load(llama(3))
    text = "the order to pay you " * 10
    for model, session in ((one, "a"), (other, "b")):
        ask(model, text, max_tokens=2, session=session)
    room = backend.stepper.memory.session_bytes
    monkeypatch.setattr(backend.stepper.memory, "limit_bytes", room + room // 4)
    assert ask(one, text, max_tokens=2, session="a").parameters["reused_tokens"] != (0,)
    assert ask(other, text, max_tokens=2, session="b").parameters["reused_tokens"] == (0,), "it was the longest unused"


def test_two_models_share_the_steps_of_the_engine(load: Load) -> None:
    """The short text of one is not kept waiting by the long text of the other."""
    one, other = load(llama(1)), load(llama(2))
    long, short = Ear(), Ear()
    job = one.start(prepared(one, **FOR_EVER), long)
    wait(long.has_begun)
    other.start(prepared(other, max_tokens=5), short)
    wait(short.is_over)
    assert len(long.pieces) < 300
    one.cancel(job)
    wait(long.is_over)
