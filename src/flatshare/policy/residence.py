"""Would every model of an endpoint stay in memory? In all-resident mode that is asked before a deployment begins.

    an instance's anonymous   the process + sessions, workspaces and tokenizers, once each + its models' own
    an instance's mapped      weights that several models share + the own weights of the models that it holds

Instances share the memory of their machine equally, so one more of an endpoint takes from all.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flatshare.core.ids import EndpointName, VariantName
from flatshare.core.spec import ModelSize

_PROCESS_BYTES = 50_000_000  # an instance with no model (docs/operations.md)
_ANONYMOUS_SHARE = 0.5  # of an instance's memory, as InstanceSettings has it
_SPREAD = 3.0  # which models an instance gets, a hash decides: so many standard deviations above the mean, one instance in 700 gets more


@dataclass(frozen=True, slots=True)
class Dealt:
    """Sizes each of which goes to one of the instances: as much of them as the estimate needs."""

    total_bytes: int
    largest_bytes: int
    sum_of_squares: int

    def fullest_bytes(self, count: int) -> int:
        """What the fullest of `count` instances gets."""
        chance = 1 / count
        deviation = math.sqrt(self.sum_of_squares * chance * (1 - chance))
        return min(self.total_bytes, max(self.largest_bytes, math.ceil(self.total_bytes * chance + _SPREAD * deviation)))


@dataclass(frozen=True, slots=True)
class Holding:
    """The models below one prefix, summed once: what any number of instances needs for them follows without looking at them again."""

    models: int
    shared_bytes: int
    """Private memory that an instance has once, however many models need it."""
    common_bytes: int
    """Weights that several of the models have: every instance is reckoned with all of them."""
    own: Dealt
    weights: Dealt


@dataclass(frozen=True, slots=True)
class Crew:
    """The instances of one variant, and the models below its prefix."""

    endpoint: EndpointName
    variant: VariantName
    count: int
    holding: Holding


@dataclass(frozen=True, slots=True)
class Machine:
    memory_bytes: int
    max_instances: int


def summed(models: Iterable[ModelSize]) -> Holding:
    """Looks at each model once and keeps none, so that there may be very many."""
    alone: dict[str, int] = {}  # tensors that one model has so far, and which
    common: set[str] = set()
    common_bytes = 0
    shared: dict[str, int] = {}
    own: list[int] = []
    weights: list[int] = []
    for index, model in enumerate(models):
        own.append(model.own_bytes)
        weights.append(0)
        shared |= model.shared
        for digest, size_bytes in model.tensors.items():
            if digest in common:
                continue
            if digest in alone:
                weights[alone.pop(digest)] -= size_bytes
                common.add(digest)
                common_bytes += size_bytes
            else:
                alone[digest] = index
                weights[index] += size_bytes
    return Holding(len(own), sum(shared.values()), common_bytes, _dealt(own), _dealt(weights))


def refusal(endpoint: EndpointName, before: tuple[Crew, ...], after: tuple[Crew, ...], machine: Machine) -> str | None:
    """Why this endpoint's change may not be made; None if it may. `before` and `after` are the crews of all endpoints.

    An endpoint that has outgrown its memory by itself forbids nothing to the others, nor to itself what leaves it lacking no more.
    """
    lacked = {(crew.endpoint, crew.variant): _lack_bytes(crew, before, machine) for crew in before}
    outgrown = {name for (name, _), lack_bytes in lacked.items() if lack_bytes}

    def is_worse(crew: Crew) -> bool:
        if crew.endpoint != endpoint and crew.endpoint in outgrown:
            return False
        return _lack_bytes(crew, after, machine) > lacked.get((crew.endpoint, crew.variant), 0)

    lacking = [crew for crew in after if is_worse(crew)]
    if not lacking:
        return None
    worst = max(lacking, key=instance_bytes)
    total = _instances(after)
    each = f"{_mb(_share_bytes(after, machine))} MB of the machine's {_mb(machine.memory_bytes)} MB"
    where = "its one instance" if worst.count == 1 else f"the fullest of its {worst.count} instances"
    return (
        f'All-resident mode: the {worst.holding.models} models of endpoint "{worst.endpoint}", variant "{worst.variant}", would need '
        f"{_mb(instance_bytes(worst))} MB on {where}, and available are {each} for each of {total} instances. "
        f"{_remedies(endpoint, after, worst, machine)}"
    )


def instance_bytes(crew: Crew) -> int:
    """The memory with which the fullest of its instances holds its models, each on one instance."""
    holding = crew.holding
    anonymous = _PROCESS_BYTES + holding.shared_bytes + holding.own.fullest_bytes(crew.count)
    return max(math.ceil(anonymous / _ANONYMOUS_SHARE), anonymous + holding.common_bytes + holding.weights.fullest_bytes(crew.count))


def _dealt(sizes: list[int]) -> Dealt:
    return Dealt(sum(sizes), max(sizes, default=0), sum(size * size for size in sizes))


def _lack_bytes(crew: Crew, crews: tuple[Crew, ...], machine: Machine) -> int:
    """How much more memory the machine would have to have for it; a crew with no models lacks nothing."""
    return max(0, instance_bytes(crew) * _instances(crews) - machine.memory_bytes) if crew.holding.models else 0


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
        crews_then = (*others, replace(worst, count=count))
        if not any(_lack_bytes(crew, crews_then, machine) for crew in crews_then):
            return count
    return None


def _mb(size_bytes: int) -> int:
    return math.ceil(size_bytes / 1e6)
