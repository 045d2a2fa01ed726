"""Runs an ensemble: each step as soon as its tensors are there, steps that do not need each other at the same time.

What follows a decoupled step runs once for each of its answers, one after the other, while the step goes on with the next.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from flatshare.core.errors import FlatshareError, ModelFailed, Overloaded
from flatshare.instance.workers.records import Answer, Ask
from flatshare.package.triton.flow import Flow, Origin
from flatshare.pyworker.frames import NamedArray
from flatshare.wire.triton_config import Step, TritonConfig

_MOST_WAITING = 1024
"""Answers of a step that the next ones have not come to."""
_Futures = Mapping[str, "asyncio.Future[NamedArray | None]"]


class Models(Protocol):
    """The models of a package, by name."""

    async def resolve(self, name: str, version: int, ask: Ask) -> list[Answer]: ...

    async def resolve_stream(self, name: str, version: int, ask: Ask, on_part: Callable[[Answer], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What it is made of."""

    config: TritonConfig
    flow: Flow
    models: Models


async def run(ensemble: Ensemble, ask: Ask, on_part: Callable[[Answer], None]) -> None:
    """`on_part` hears the answer, or any number of them. Raises what a step raised, or ModelFailed for a tensor that nobody made."""
    given = {tensor.name: tensor for tensor in ask.inputs}
    inputs = {tensor.name: given.get(tensor.name) for tensor in ensemble.config.inputs}
    try:
        await _Run(ensemble, ask, on_part).follow(None, inputs)
    except* FlatshareError as errors:
        raise _first(errors) from None


@dataclass(frozen=True, slots=True)
class _Run:
    """One request's way through the steps."""

    ensemble: Ensemble
    ask: Ask
    on_part: Callable[[Answer], None]

    async def follow(self, origin: Origin, given: Mapping[str, NamedArray | None]) -> None:
        """Run the steps that these tensors are for, and answer if the ensemble's outputs come with them. None: nobody made it."""
        config, flow = self.ensemble.config, self.ensemble.flow
        indices = flow.steps.get(origin, ())
        loop = asyncio.get_running_loop()
        once = [config.steps[index] for index in indices if index not in flow.decoupled]
        futures = {name: loop.create_future() for name in (*given, *(name for step in once for name in step.outputs.values()))}
        for name, tensor in given.items():
            futures[name].set_result(tensor)
        async with asyncio.TaskGroup() as steps:
            for index in indices:
                run = self._run_decoupled(index, futures) if index in flow.decoupled else self._run_once(config.steps[index], futures)
                steps.create_task(run)
            if flow.outputs == origin:
                self.on_part(await self._answer(futures))

    async def _run_once(self, step: Step, futures: _Futures) -> None:
        answers = await self.ensemble.models.resolve(step.model, step.version, await self._asked(step, futures))
        if len(answers) != 1:
            raise ModelFailed(f"ensemble '{self.ensemble.config.name}': step '{step.model}' answered {len(answers)} times, and not once")
        for name, tensor in _named(step, answers[0]).items():
            futures[name].set_result(tensor)

    async def _run_decoupled(self, index: int, futures: _Futures) -> None:
        """An error comes after what the step had answered before it."""
        step = self.ensemble.config.steps[index]
        heard: asyncio.Queue[Answer | None] = asyncio.Queue()  # bounded by `hear`
        is_flooded = False

        def hear(answer: Answer) -> None:
            nonlocal is_flooded
            if heard.qsize() >= _MOST_WAITING:
                is_flooded = True
                asking.cancel()
            else:
                heard.put_nowait(answer)

        asked = await self._asked(step, futures)
        asking = asyncio.ensure_future(self.ensemble.models.resolve_stream(step.model, step.version, asked, hear))
        asking.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (answer := await heard.get()) is not None:
                await self.follow(index, _named(step, answer))
        finally:
            asking.cancel()
            [error] = await asyncio.gather(asking, return_exceptions=True)
        if is_flooded:
            raise Overloaded(f"{_MOST_WAITING} answers of step '{step.model}' wait for the steps after it, which are slower")
        if isinstance(error, BaseException):
            raise error

    async def _asked(self, step: Step, futures: _Futures) -> Ask:
        inputs = []
        for name, tensor in step.inputs.items():
            found = await asyncio.shield(futures[tensor])
            if found is not None:
                inputs.append(NamedArray(name, found.datatype, found.data))
        return replace(self.ask, inputs=tuple(inputs), wanted=tuple(step.outputs))

    async def _answer(self, futures: _Futures) -> Answer:
        config = self.ensemble.config
        outputs = []
        for name in self.ask.wanted or tuple(tensor.name for tensor in config.outputs):
            found = await asyncio.shield(futures[name])
            if found is None:
                raise ModelFailed(f"ensemble '{config.name}': no step made its output '{name}'")
            outputs.append(found)
        return Answer(tuple(outputs), is_final=self.ensemble.flow.outputs is None)


def _named(step: Step, answer: Answer) -> dict[str, NamedArray | None]:
    """The step's outputs by the ensemble's names for them."""
    made = {tensor.name: tensor for tensor in answer.outputs}
    found = {tensor: made.get(name) for name, tensor in step.outputs.items()}
    return {name: None if tensor is None else NamedArray(name, tensor.datatype, tensor.data) for name, tensor in found.items()}


def _first(errors: BaseExceptionGroup[FlatshareError]) -> FlatshareError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FlatshareError), "a group of our errors holds another. This is a bug."
    return error
