"""Would every model of an endpoint stay in memory? In all-resident mode that is asked before a deployment begins.

    an instance's anonymous   the process + sessions, workspaces and tokenizers, once each + its models' own
    an instance's mapped      weights that several models share + the own weights of the models that it holds

Instances share the memory of their machine equally, so one more of an endpoint takes from all.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from flatshare.core.ids import EndpointName, VariantName
from flatshare.core.spec import ModelSize

_PROCESS_BYTES = 50_000_000  # an instance with no model (docs/operations.md)
_ANONYMOUS_SHARE = 0.5  # of an instance's memory, as InstanceSettings has it
_SPREAD = 3.0  # which models an instance gets, a hash decides: so many standard deviations above the mean, one instance in 700 gets more


@dataclass(frozen=True, slots=True)
class Crew:
    """The instances of one variant, and the models below its prefix."""

    endpoint: EndpointName
    variant: VariantName
    count: int
    models: tuple[ModelSize, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    memory_bytes: int
    max_instances: int


def refusal(endpoint: EndpointName, before: tuple[Crew, ...], after: tuple[Crew, ...], machine: Machine) -> str | None:
    """Why this endpoint's change may not be made; None if it may. `before` and `after` are the crews of all endpoints.

    An endpoint that has outgrown its memory by itself forbids nothing to the others.
    """
    outgrown = {crew.endpoint for crew in _lacking(before, machine)}
    lacking = [crew for crew in _lacking(after, machine) if crew.endpoint == endpoint or crew.endpoint not in outgrown]
    if not lacking:
        return None
    worst = max(lacking, key=instance_bytes)
    total = _instances(after)
    each = f"{_mb(_share_bytes(after, machine))} MB of the machine's {_mb(machine.memory_bytes)} MB"
    where = "its one instance" if worst.count == 1 else f"the fullest of its {worst.count} instances"
    return (
        f'All-resident mode: the {len(worst.models)} models of endpoint "{worst.endpoint}", variant "{worst.variant}", would need '
        f"{_mb(instance_bytes(worst))} MB on {where}, and available are {each} for each of {total} instances. "
        f"{_remedies(endpoint, after, worst, machine)}"
    )


def instance_bytes(crew: Crew) -> int:
    """The memory with which the fullest of its instances holds its models, each on one instance."""
    holders = Counter(digest for model in crew.models for digest in model.tensors)
    common: dict[str, int] = {}
    shared: dict[str, int] = {}
    for model in crew.models:
        shared |= model.shared
        common |= {digest: size for digest, size in model.tensors.items() if holders[digest] > 1}
    own = _fullest((model.own_bytes for model in crew.models), crew.count)
    weights = _fullest((sum(size for digest, size in m.tensors.items() if holders[digest] == 1) for m in crew.models), crew.count)
    anonymous = _PROCESS_BYTES + sum(shared.values()) + own
    return max(math.ceil(anonymous / _ANONYMOUS_SHARE), anonymous + sum(common.values()) + weights)


def _fullest(sizes: Iterable[int], count: int) -> int:
    """What the fullest of `count` instances gets, if each size goes to any of them."""
    listed = tuple(sizes)
    total, largest = sum(listed), max(listed, default=0)
    chance = 1 / count
    deviation = math.sqrt(sum(size * size for size in listed) * chance * (1 - chance))
    return min(total, max(largest, math.ceil(total * chance + _SPREAD * deviation)))


def _lacking(crews: tuple[Crew, ...], machine: Machine) -> list[Crew]:
    share = _share_bytes(crews, machine)
    return [crew for crew in crews if crew.models and instance_bytes(crew) > share]


def _share_bytes(crews: tuple[Crew, ...], machine: Machine) -> int:
    return machine.memory_bytes // max(1, _instances(crews))


def _instances(crews: tuple[Crew, ...]) -> int:
    return sum(crew.count for crew in crews)


def _remedies(endpoint: EndpointName, after: tuple[Crew, ...], worst: Crew, machine: Machine) -> str:
    enough = math.ceil(max(map(instance_bytes, after)) * _instances(after) / 1e6)
    ways = [f"start flatshare with --memory {enough}MB"]
    if (count := _count_that_holds(after, worst, machine)) is not None and worst.endpoint == endpoint:
        ways.append(f"ask for an InitialInstanceCount of {count}, which would hold them")
    ways.append("take models away from below the prefix")
    ways.append('set mode = "overcommitted", which evicts what is idle')
    return f"What helps: {', '.join(ways[:-1])}, or {ways[-1]}."


def _count_that_holds(crews: tuple[Crew, ...], worst: Crew, machine: Machine) -> int | None:
    """The smallest number of this crew's instances with which all crews fit; None if none does."""
    others = tuple(crew for crew in crews if crew is not worst)
    for count in range(worst.count + 1, worst.count + 1 + machine.max_instances - _instances(crews)):
        if not _lacking((*others, Crew(worst.endpoint, worst.variant, count, worst.models)), machine):
            return count
    return None


def _mb(size_bytes: int) -> int:
    return math.ceil(size_bytes / 1e6)
