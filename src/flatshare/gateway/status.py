"""What the fleet is doing now: every instance's own status, gathered for the dashboard, `flatshare top` and `/metrics`."""

import asyncio
from typing import Any

import orjson

from flatshare.core.errors import InstanceGone
from flatshare.core.readings import ModelMetric
from flatshare.core.state import EndpointRoute
from flatshare.gateway.routes import RouteTable, Upstream
from flatshare.gateway.shadow import Shadows
from flatshare.telemetry.metrics import InstanceReading

_TIMEOUT_S = 2.0


class FleetStatus:
    """Asks every instance in service."""

    def __init__(self, routes: RouteTable, shadows: Shadows) -> None:
        self._routes = routes
        self._shadows = shadows

    async def report(self) -> dict[str, Any]:
        """All that `/flatshare/status` says."""
        return {
            "instances": await self.gather(),
            "shadows": self._shadows.report(),
            "canaries": self._routes.versions.report(),
            "cold_starts": self._routes.cold_starts.report(),
        }

    async def gather(self) -> list[dict[str, Any]]:
        """One record per instance; one that does not answer says so under `error`."""
        pairs = [(endpoint, upstream) for endpoint in self._routes.endpoints.values() for upstream in self._routes.upstreams(endpoint)]
        return list(await asyncio.gather(*(_ask(endpoint, upstream) for endpoint, upstream in pairs)))

    async def readings(self) -> list[InstanceReading]:
        return [_reading(status) for status in await self.gather() if "balance" in status]

    def endpoints(self) -> set[str]:
        """Those in service: the only ones that may stand in a label."""
        return set(self._routes.endpoints)


async def _ask(endpoint: EndpointRoute, upstream: Upstream) -> dict[str, Any]:
    base = {"endpoint": endpoint.name, "instance": upstream.id, "socket": upstream.client.socket_path}
    try:
        reply = await upstream.client.request("GET", "/flatshare/status", timeout_s=_TIMEOUT_S)
    except (InstanceGone, TimeoutError) as error:
        return {**base, "error": str(error) or "no answer in time"}
    return {**base, **orjson.loads(reply.body)}


def _reading(status: dict[str, Any]) -> InstanceReading:
    balance = status["balance"]
    return InstanceReading(
        endpoint=status["endpoint"],
        instance=status["instance"],
        models=balance["models"],
        copies=balance["copies"],
        anonymous_bytes=balance["measured_anonymous"],
        mapped_bytes=balance["mapped"],
        anonymous_limit_bytes=balance["anonymous_limit"],
        memory_limit_bytes=balance["memory_limit"],
        in_flight=status["in_flight"],
        waiting=status["waiting"],
        decisions=status["decision_counts"],
        evictions=status["eviction_counts"],
        refusals=status["refusal_counts"],
        queues=status["waiting_by_class"],
        pressure_bytes=balance["pressure"],
        thrash_index=status["thrash"]["index"],
        lacks_memory=status["thrash"]["lacks_memory"],
        **{name: status["signs"][name] for name in ("stalled_percent", "refaults_per_s", "major_faults_per_s")},
        model_metrics=tuple(map(_model_metric, status.get("model_metrics", ()))),
    )


def _model_metric(fields: dict[str, Any]) -> ModelMetric:
    return ModelMetric(**fields | {name: tuple(fields[name]) for name in ("bounds", "counts")})
