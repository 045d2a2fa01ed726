"""Where a request goes: rendezvous hashing, so that a model stays where it is warm and only 1/n of the models move when n changes.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998). With bounded load: an instance that has more than
`SPILL` times the mean of requests in flight is passed over for the model's next choice (Mirrokni et al., 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from flatshare.core.ids import InstanceId, ModelKey

SPILL = 1.5
_ALWAYS_FREE = 4  # an instance with fewer requests in flight is never passed over: a queue this short costs less than a cold start


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    id: InstanceId
    in_flight: int


def choose(model: ModelKey, instances: Sequence[InstanceLoad]) -> InstanceId:
    """The instance for this request. `instances` must not be empty."""
    if len(instances) == 1:
        return instances[0].id
    bound = max(_ALWAYS_FREE, SPILL * (1 + sum(i.in_flight for i in instances)) / len(instances))
    ranked = sorted(instances, key=lambda instance: _weight(model, instance.id), reverse=True)
    return next((i.id for i in ranked if i.in_flight < bound), ranked[0].id)


def pick_weighted(weights: Sequence[float], point: float) -> int:
    """Index into `weights` for a `point` in [0, 1): how requests are split over production variants. All zero means the first."""
    total = sum(weights)
    if total <= 0:
        return 0
    left = point * total
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight > 0)


def is_copied(production_weight: float, shadow_weight: float, point: float) -> bool:
    """Whether the request drawn at `point` in [0, 1) goes to the shadow too: of production's, the share that the weights' ratio says."""
    return point * production_weight < shadow_weight


def _weight(model: ModelKey, instance: InstanceId) -> bytes:
    return blake2b(f"{model}@{instance}".encode(), digest_size=8).digest()
