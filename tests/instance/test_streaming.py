"""Answers in parts of a model in another process: what the caller hears, and what the model hears of the caller."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import orjson
import pytest

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import ModelFailed, TooLate
from flatshare.core.ids import NOBODY, Tenant
from flatshare.core.signature import Signature, Task
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.streaming import TensorParts, Voice
from flatshare.wire import generation, v2

HINT = InferResult((Tensor.of("B", np.array([1.0], np.float32)),), is_final=False)


@dataclass
class Talker(RemoteModel):
    """Says something so many times, then fails or goes on for ever."""

    count: int
    error: Exception | None = None
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    signature: Signature = field(default_factory=lambda: Signature(Task.TENSORS, "python", (), ()))

    def signature_of(self, version: str) -> Signature:
        raise NotImplementedError(version)

    async def infer(self, call: InferCall, tenant: Tenant = NOBODY, deadline_s: float | None = None) -> InferResult:
        raise NotImplementedError(call)

    async def stream(self, call: InferCall, heard: Callable[[InferResult], None], tenant: Tenant = NOBODY) -> None:
        try:
            for _ in range(self.count):
                heard(HINT)
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.has_left.set()

    async def close(self) -> None:
        raise NotImplementedError


def parts_of(model: Talker, deadline_s: float | None = None) -> TensorParts:
    request = v2.parse({"inputs": [{"name": "A", "datatype": "FP32", "shape": [1], "data": [1]}]})
    return TensorParts(model, request.call, Voice(generation.LINES, request, "m", "d"), NOBODY, deadline_s)


async def test_what_goes_wrong_before_the_first_answer_is_raised() -> None:
    parts = parts_of(Talker(0, ModelFailed("no")))
    with pytest.raises(ModelFailed, match="no"):
        await parts.begin()
    await parts.aclose()


async def test_what_goes_wrong_later_is_the_last_part() -> None:
    parts = parts_of(Talker(2, ModelFailed("no more")))
    await parts.begin()
    found = [orjson.loads(part) async for part in parts]
    assert [answer.get("outputs", [{}])[0].get("data") for answer in found] == [[1.0], [1.0], None]
    assert found[-1] == {"error": "no more", "type": "ModelFailed"}
    await parts.aclose()


async def test_a_model_hears_that_its_caller_has_left() -> None:
    model = Talker(1)
    parts = parts_of(model)
    await parts.begin()
    assert not model.has_left.is_set()
    await parts.aclose()
    assert model.has_left.is_set()


async def test_a_caller_who_does_not_read_does_not_fill_the_memory() -> None:
    parts = parts_of(Talker(100_000))
    await parts.begin()
    found = [orjson.loads(part) async for part in parts]
    assert len(found) <= 1026
    assert found[-1]["type"] == "Overloaded"
    await parts.aclose()


async def test_a_deadline_ends_a_stream() -> None:
    parts = parts_of(Talker(0), deadline_s=asyncio.get_running_loop().time() + 0.01)
    with pytest.raises(TooLate):
        await parts.begin()
    await parts.aclose()
