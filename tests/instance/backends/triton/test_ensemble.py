"""Ensembles with decoupled steps: what follows such a step runs for each of its answers, and the errors come where they belong."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import BadPackage, FlatshareError, ModelFailed, Overloaded
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.backends.triton import ensemble
from flatshare.instance.backends.triton.ensemble import Ensemble
from flatshare.instance.workers.records import Answer, Ask
from flatshare.package.triton.flow import flow_of
from flatshare.pyworker.frames import NamedArray
from flatshare.wire import triton_config
from tests.contract.packages import COUNTER, COUNTER_CONFIG, PIPELINE_CONFIG, write_model, write_pipeline
from tests.instance.workers.conftest import Hotel, hotel, make_hotel

__all__ = ["hotel", "make_hotel"]
ONE = "data_type: TYPE_INT32 dims: [ 1 ]"


def whole(name: str, *steps: str, outputs: str = "number") -> str:
    made = ", ".join(f'{{ name: "{output}" {ONE} }}' for output in outputs.split())
    head = f'name: "{name}" platform: "ensemble" input [ {{ name: "count" {ONE} }} ] output [ {made} ]'
    return f"{head} ensemble_scheduling {{ step [ {', '.join(steps)} ] }}"


def step(model: str, takes: str, gives: str) -> str:
    maps = [
        f'{kind} {{ key: "{pair.partition("=")[0]}" value: "{pair.partition("=")[2]}" }}'
        for kind, pairs in (("input_map", takes), ("output_map", gives))
        for pair in pairs.split()
    ]
    return f'{{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def add_ensemble(repository: Path, name: str, config: str) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1/.keep").touch()
    (repository / name / "config.pbtxt").write_text(config)
    return repository


def counting(count: int) -> InferCall:
    return InferCall({"count": Tensor.of("count", np.array([count], np.int32))})


async def heard(model: RemoteModel, count: int) -> tuple[list[int], str]:
    """The numbers that came, and the error after them."""
    numbers: list[int] = []

    def hear(result: InferResult) -> None:
        assert not result.is_final  # whoever asked for it hears of the end by an answer of its own
        numbers.append(int(result.output("number").data[0]))

    try:
        await model.stream(counting(count), hear)
    except FlatshareError as error:
        return numbers, str(error)
    return numbers, ""


@pytest.mark.slow
class TestWorkers:
    async def test_an_ensemble_with_a_decoupled_step_is_decoupled(self, hotel: Hotel, tmp_path: Path) -> None:
        model = await hotel.load(write_pipeline(tmp_path / "package"))
        assert model.signature.is_decoupled
        assert await heard(model, 5) == ([0, -1, -2, -3, -4], "")
        assert await heard(model, 0) == ([], "")

    async def test_an_error_comes_after_what_was_answered_before_it(self, hotel: Hotel, tmp_path: Path) -> None:
        numbers, error = await heard(await hotel.load(write_pipeline(tmp_path / "package")), -2)
        assert numbers == [0, -1]
        assert "below zero" in error

    async def test_a_plain_call_takes_exactly_one_answer(self, hotel: Hotel, tmp_path: Path) -> None:
        model = await hotel.load(write_pipeline(tmp_path / "package"))
        assert (await model.infer(counting(1))).output("number").data.tolist() == [0]
        with pytest.raises(ModelFailed, match="'pipeline' is decoupled and answered 2 times"):
            await model.infer(counting(2))

    async def test_a_decoupled_step_may_follow_another_and_an_ensemble_be_a_step(self, hotel: Hotel, tmp_path: Path) -> None:
        folder = write_model(tmp_path / "package", COUNTER, COUNTER_CONFIG, name="counter")
        twice = step("counter", "count=count", "number=first"), step("counter", "count=first", "number=number")
        add_ensemble(folder, "twice", whole("twice", *twice))
        add_ensemble(folder, "outer", whole("outer", step("twice", "count=count", "number=number")))
        assert await heard(await hotel.load(folder), 4) == ([0, 0, 1, 0, 1, 2], "")


def read(config: str) -> triton_config.TritonConfig:
    return triton_config.read(triton_config.parse(config, "test"), "test")


COUNT = step("counter", "count=count", "number=counted")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            whole("test", COUNT, step("add", "a=counted b=count", "sum=number")),
            r"step 1 \('add'\) takes tensors that do not come as often as each other .'count' once, 'counted' with each answer of step 0",
        ),
        (
            whole("test", COUNT, step("counter", "count=count", "number=other"), step("add", "a=counted b=other", "sum=number")),
            "'counted' with each answer of step 0, 'counter', 'other' with each answer of step 1",
        ),
        (
            whole("test", COUNT, step("add", "a=count b=count", "sum=number"), outputs="counted number"),
            "has outputs that do not come as often as each other",
        ),
    ],
)
def test_what_would_have_to_be_paired_is_refused(config: str, sentence: str) -> None:
    with pytest.raises(BadPackage, match=sentence):
        flow_of(read(config), lambda step: step.model == "counter")


class Flood:
    """A step that answers again and again without a pause, and one after it that takes its time."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self.is_over = False

    async def resolve(self, name: str, version: int, ask: Ask) -> list[Answer]:
        assert (name, version) == ("piped", -1)
        for _ in range(self._turns):
            await asyncio.sleep(0)
        return [Answer((NamedArray("negated", "INT32", ask.inputs[0].data),))]

    async def resolve_stream(self, name: str, version: int, ask: Ask, on_part: Callable[[Answer], None]) -> None:
        assert (name, version, len(ask.inputs)) == ("pipe", -1, 1)
        try:
            for number in range(10_000):
                found = np.array([number], np.int32)
                on_part(Answer((NamedArray("number", "INT32", found), NamedArray("text", "BYTES", found.astype(object)))))
                await asyncio.sleep(0)
        finally:
            self.is_over = True


def flooded(turns: int) -> tuple[Ensemble, Flood, Ask]:
    flood, config = Flood(turns), read(PIPELINE_CONFIG)
    made_of = Ensemble(config, flow_of(config, lambda step: step.model == "pipe"), flood)
    return made_of, flood, Ask((NamedArray("count", "INT32", np.array([1], np.int32)),))


async def test_a_step_that_is_too_far_ahead_is_stopped() -> None:
    made_of, flood, ask = flooded(turns=20)
    answers: list[Answer] = []
    with pytest.raises(Overloaded, match="1024 answers of step 'pipe' wait for the steps after it"):
        await ensemble.run(made_of, ask, answers.append)
    assert flood.is_over
    assert 1024 <= len(answers) < 2000


async def test_a_caller_who_leaves_ends_the_steps() -> None:
    made_of, flood, ask = flooded(turns=10**6)
    running = asyncio.ensure_future(ensemble.run(made_of, ask, lambda _: None))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not flood.is_over
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert flood.is_over
