"""The three things that a worker is asked to do with a model: load, run a batch, unload."""

import asyncio
from contextlib import suppress
from typing import Any

from flatshare.core.errors import BadPackage, ModelFailed, OutOfMemory, WorkerDied
from flatshare.instance.workers.process import WorkerProcess
from flatshare.instance.workers.records import Answer, Model, Rider
from flatshare.instance.workers.seats import Seat
from flatshare.policy import gather
from flatshare.policy.gather import Waiting
from flatshare.pyworker.frames import Frame, NamedArray
from flatshare.telemetry.log import get_logger
from flatshare.wire import triton_config
from flatshare.wire.triton_config import PYTHON

log = get_logger("workers")


async def load(worker: WorkerProcess, model: Model, timeout_s: float) -> None:
    """After this the worker has the model, and `model.config` what its own code completed. Raises ModelFailed, OutOfMemory, WorkerDied."""
    place = model.place
    try:
        reply = await worker.ask("load", timeout_s=timeout_s, **_load_fields(model))
    except WorkerDied as error:
        raise WorkerDied(f"model '{place.unit.model}' brought down its worker while it was loaded: {worker.end}") from error
    if reply.kind != "loaded":
        raise _failure(reply.fields, place.unit.model)
    try:
        model.config = triton_config.read(dict(reply.fields["config"]), place.unit.model)
    except BadPackage as error:
        raise ModelFailed(f"auto_complete_config made a config that is wrong: {error}") from error


async def run(seat: Seat, model: Model, riders: list[Rider], timeout_s: float) -> None:
    """Settle each rider but those that a decoupled model goes on answering. Raises WorkerDied for all of them."""
    name = model.place.unit.model
    tensors = [tensor for rider in riders for tensor in rider.ask.inputs]
    try:
        reply = await seat.worker.ask("infer", tensors, timeout_s=timeout_s, **_infer_fields(model, riders))
    except WorkerDied as error:
        raise WorkerDied(f"model '{name}' brought down its worker process: {seat.worker.end}; another has taken its place") from error
    for remark in reply.fields.get("remarks", ()):
        log.warning("output_contradicts_config", model=name, remark=remark)
    _settle(reply, riders, model)


async def unload(worker: WorkerProcess, model: Model, timeout_s: float) -> None:
    """A worker that dies of it has given the memory back as well."""
    with suppress(WorkerDied):
        reply = await worker.ask("unload", timeout_s=timeout_s, model=model.place.key, name=model.place.unit.model)
        if "error" in reply.fields:
            log.warning(
                "finalize_failed", model=model.place.unit.model, reason=reply.fields["error"], traceback=reply.fields.get("traceback")
            )


async def until_filled(model: Model) -> None:
    """A model with a queue delay waits so long for more rows to run together."""
    batching = model.config.batching
    if batching is None or batching.max_delay_s <= 0 or model.config.max_batch_size <= 1:
        return
    enough = max((size for size in batching.preferred if size <= model.config.max_batch_size), default=model.config.max_batch_size)
    with suppress(TimeoutError):
        async with asyncio.timeout(batching.max_delay_s):
            while model.waiting_rows < enough:
                model.grew.clear()
                await model.grew.wait()


def take(model: Model) -> list[Rider]:
    """The riders of the next run, out of the line; those who have left are skipped before."""
    while model.queue and model.queue[0].done.done():
        model.queue.popleft()
    if not model.queue:
        return []
    config = model.config
    if config.max_batch_size <= 1 or (config.batching is None and config.backend == PYTHON):
        return [model.queue.popleft()]  # a graph that takes rows takes those that wait, as Triton completes such a config
    preferred = config.batching.preferred if config.batching is not None else ()
    present = [rider for rider in model.queue if not rider.done.done()]
    waiting = [Waiting(rider.rows, _shape(rider, model)) for rider in present]
    taken = present[: gather.take(waiting, most_rows=config.max_batch_size, preferred=preferred)]
    for rider in taken:
        model.queue.remove(rider)
    return taken


def all_of(model: Model) -> list[Rider]:
    """Everybody in line."""
    riders = list(model.queue)
    model.queue.clear()
    return riders


def part(frame: Frame, rider: Rider, name: str) -> bool:
    """Enter one response of a decoupled model; True if it was the last."""
    if frame.fields["has_response"]:
        if "error" in frame.fields:
            rider.fail(_failure(frame.fields, name))
        else:
            rider.hear(Answer(frame.tensors, frame.fields.get("parameters", {}), bool(frame.fields["is_final"])))
    if frame.fields["is_final"]:
        rider.settle(rider.parts)
    return bool(frame.fields["is_final"])


def _settle(reply: Frame, riders: list[Rider], model: Model) -> None:
    tensors = iter(reply.tensors)
    for rider, fields in zip(riders, reply.fields["responses"], strict=True):
        if fields is None:
            continue
        if "error" in fields:
            rider.fail(_failure(fields, model.place.unit.model))
        else:
            outputs: tuple[NamedArray, ...] = tuple(next(tensors) for _ in range(fields["count"]))
            rider.settle([Answer(outputs, fields.get("parameters", {}))])


def _failure(fields: dict[str, Any], name: str) -> Exception:
    """The caller hears the sentence, the operator's log has the traceback."""
    sentence = str(fields.get("error", "the worker did not say what went wrong"))
    if fields.get("traceback"):
        log.warning("model_raised", model=name, reason=sentence, traceback=fields["traceback"])
    return OutOfMemory(sentence) if fields.get("is_memory") else ModelFailed(sentence)


def _load_fields(model: Model) -> dict[str, Any]:
    unit, config = model.place.unit, model.place.config
    return {
        "model": model.place.key,
        "engine": config.backend,
        "name": unit.model,
        "folder": str(model.place.folder),
        "version": str(unit.version),
        "file": config.file,
        "config": dict(unit.config),
        "shared": {file: {name: (place.path, place.offset) for name, place in found.items()} for file, found in unit.shared.items()},
    }


def _infer_fields(model: Model, riders: list[Rider]) -> dict[str, Any]:
    return {
        "model": model.place.key,
        "name": model.place.unit.model,
        "version": model.place.unit.version,
        "is_decoupled": model.config.is_decoupled,
        "requests": [_request_fields(rider) for rider in riders],
    }


def _request_fields(rider: Rider) -> dict[str, Any]:
    parameters = dict(rider.ask.parameters)
    flags = int(bool(parameters.pop("sequence_start", False))) + 2 * int(bool(parameters.pop("sequence_end", False)))
    return {
        "id": rider.number,
        "wanted": list(rider.ask.wanted),
        "request_id": rider.ask.request_id,
        "correlation_id": parameters.pop("sequence_id", 0),
        "flags": flags,
        "timeout": parameters.pop("timeout", 0),
        "parameters": parameters,
        "count": len(rider.ask.inputs),
    }


def _shape(rider: Rider, model: Model) -> tuple[object, ...]:
    """What must be equal for two requests to share a run: names, types, and the sizes behind the batch's, unless they may be ragged."""
    ragged = {tensor.name for tensor in model.config.inputs if tensor.is_ragged}
    return tuple((t.name, t.datatype, () if t.name in ragged else t.data.shape[1:]) for t in rider.ask.inputs)
