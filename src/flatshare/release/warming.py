"""Every model that callers are sent to, called once: what keeps a fleet warm that has room for all of them."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import orjson

from flatshare.client.retrying import Patience, call_patiently
from flatshare.core.errors import FlatshareError
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.release import ModelReleases
from flatshare.core.signature import Task
from flatshare.release.site import Site

_PARALLEL = 4  # a warm-up gives way to callers
_COLD_MS = "x-flatshare-cold-start-ms"
_BODIES: Mapping[str, dict[str, Any]] = {
    Task.EMBEDDING: {"inputs": "hello"},
    Task.CLASSIFICATION: {"inputs": "hello"},
    Task.TOKEN_CLASSIFICATION: {"inputs": "hello"},
    Task.RANKING: {"query": "hello", "passages": ["hello"]},
    Task.GENERATION: {"inputs": "hello", "parameters": {"max_tokens": 1}},
}


@dataclass(frozen=True, slots=True)
class Warmed:
    """One artifact after its call."""

    target: TargetModel
    load_ms: float
    """0 if it was in memory already."""
    error: str = ""


def warm(site: Site) -> Iterator[Warmed]:
    """Call each artifact that an alias leads to. Those that fail are named, the others go on."""
    wanted = [(releases, target) for releases in site.book.all() for target in _live_targets(releases)]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="warm") as threads:
        for job in as_completed([threads.submit(_call, site, releases.kind, releases.endpoint, target) for releases, target in wanted]):
            yield job.result()


def _live_targets(releases: ModelReleases) -> list[TargetModel]:
    numbers = {alias.version for alias in releases.aliases.values()}
    numbers |= {alias.canary.version for alias in releases.aliases.values() if alias.canary is not None}
    return [target for number in sorted(numbers) for target in releases.version(number).targets.values()]


def _call(site: Site, kind: str, endpoint: EndpointName, target: TargetModel) -> Warmed:
    if kind not in _BODIES:
        return Warmed(target, 0.0, f"a model of kind {kind} has no request that suits all: call it yourself")
    body = orjson.dumps(_BODIES[kind])
    call = {"EndpointName": endpoint, "TargetModel": target, "ContentType": "application/json", "Body": body}
    try:
        answer = call_patiently(lambda: site.runtime.invoke_endpoint(**call), Patience())
    except FlatshareError as error:
        return Warmed(target, 0.0, str(error))
    answer["Body"].read()
    return Warmed(target, float(answer["ResponseMetadata"]["HTTPHeaders"].get(_COLD_MS, 0.0)))
