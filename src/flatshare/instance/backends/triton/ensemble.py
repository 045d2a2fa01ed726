"""Runs an ensemble: each step as soon as its tensors are there, steps that do not need each other at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from flatshare.core.errors import FlatshareError, ModelFailed
from flatshare.instance.workers.records import Answer, Ask
from flatshare.pyworker.frames import NamedArray
from flatshare.wire.triton_config import Step, TritonConfig

Resolve = Callable[[str, int, Ask], Awaitable[list[Answer]]]


async def run(config: TritonConfig, ask: Ask, resolve: Resolve) -> Answer:
    """Raises what a step raised, or ModelFailed if it did not make a tensor that another needs."""
    futures = _futures(config, ask)
    try:
        async with asyncio.TaskGroup() as steps:
            for step in config.steps:
                steps.create_task(_run_step(config, step, ask, futures, resolve))
    except* FlatshareError as errors:
        raise _first(errors) from None
    wanted = ask.wanted or tuple(tensor.name for tensor in config.outputs)
    return Answer(tuple(_made(futures, name, config) for name in wanted))


def _futures(config: TritonConfig, ask: Ask) -> dict[str, "asyncio.Future[NamedArray | None]"]:
    """One for each tensor of the ensemble; those of the caller are settled. None: nobody made it."""
    loop = asyncio.get_running_loop()
    names = [tensor.name for tensor in config.inputs] + [name for step in config.steps for name in step.outputs.values()]
    futures = {name: loop.create_future() for name in names}
    given = {tensor.name: tensor for tensor in ask.inputs}
    for tensor in config.inputs:
        futures[tensor.name].set_result(given.get(tensor.name))
    return futures


async def _run_step(
    config: TritonConfig, step: Step, ask: Ask, futures: Mapping[str, "asyncio.Future[NamedArray | None]"], resolve: Resolve
) -> None:
    inputs = []
    for name, tensor in step.inputs.items():
        found = await asyncio.shield(futures[tensor])
        if found is not None:
            inputs.append(NamedArray(name, found.datatype, found.data))
    answers = await resolve(step.model, step.version, replace(ask, inputs=tuple(inputs), wanted=tuple(step.outputs)))
    if len(answers) != 1:
        raise ModelFailed(f"ensemble '{config.name}': step '{step.model}' answered {len(answers)} times, and not once")
    made = {tensor.name: tensor for tensor in answers[0].outputs}
    for name, tensor in step.outputs.items():
        found = made.get(name)
        futures[tensor].set_result(None if found is None else NamedArray(tensor, found.datatype, found.data))


def _made(futures: Mapping[str, "asyncio.Future[NamedArray | None]"], name: str, config: TritonConfig) -> NamedArray:
    found = futures[name].result()
    if found is None:
        raise ModelFailed(f"ensemble '{config.name}': no step made its output '{name}'")
    return found


def _first(errors: BaseExceptionGroup[FlatshareError]) -> FlatshareError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FlatshareError), "a group of our errors holds another. This is a bug."
    return error
