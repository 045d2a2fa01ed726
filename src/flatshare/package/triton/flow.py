"""Which answers of a decoupled step the tensors of an ensemble come with: what follows such a step runs once for each of its answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flatshare.core.errors import BadPackage
from flatshare.wire.triton_config import Step, TritonConfig

Origin = int | None
"""The place of a decoupled step in its ensemble; None for what there is once, because no such step comes before it."""


@dataclass(frozen=True, slots=True)
class Flow:
    """An ensemble's steps, by what they run for."""

    steps: Mapping[Origin, tuple[int, ...]]
    decoupled: frozenset[int]
    outputs: Origin
    """What there is an answer of the ensemble for."""


def flow_of(config: TritonConfig, is_decoupled: Callable[[Step], bool]) -> Flow:
    """Of an ensemble whose steps fit together. Raises BadPackage where answers of different steps would have to be paired."""
    decoupled = frozenset(index for index, step in enumerate(config.steps) if is_decoupled(step))
    origins: dict[str, Origin] = {tensor.name: None for tensor in config.inputs}
    steps: dict[Origin, tuple[int, ...]] = {}
    left = dict(enumerate(config.steps))
    while left:
        index = next(index for index, step in left.items() if all(tensor in origins for tensor in step.inputs.values()))
        step = left.pop(index)
        place = f"ensemble '{config.name}', step {index} ('{step.model}') takes tensors"
        origin = _one(place, config, {tensor: origins[tensor] for tensor in step.inputs.values()})
        steps[origin] = (*steps.get(origin, ()), index)
        origins |= dict.fromkeys(step.outputs.values(), index if index in decoupled else origin)
    return Flow(steps, decoupled, _one(f"ensemble '{config.name}' has outputs", config, {t.name: origins[t.name] for t in config.outputs}))


def _one(place: str, config: TritonConfig, tensors: Mapping[str, Origin]) -> Origin:
    origins = set(tensors.values())
    if len(origins) > 1:
        raise BadPackage(
            f"{place} that do not come as often as each other ({', '.join(_told(tensors, config))}): "
            "of a decoupled step, which answers any number of times, all must come with the same answer"
        )
    return origins.pop() if origins else None


def _told(tensors: Mapping[str, Origin], config: TritonConfig) -> Iterable[str]:
    for tensor, origin in sorted(tensors.items()):
        yield f"'{tensor}' once" if origin is None else f"'{tensor}' with each answer of step {origin}, '{config.steps[origin].model}'"
