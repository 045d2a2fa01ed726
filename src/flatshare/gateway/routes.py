"""Step 3 of a request's path: which endpoints answer, through which instances, and the connections to them."""

import asyncio
from dataclasses import dataclass
from functools import lru_cache

from flatshare.client.instance import InstanceClient
from flatshare.core.call import ModelSource
from flatshare.core.errors import UnknownEndpoint, UnknownVariant
from flatshare.core.ids import EndpointName, InstanceId, ModelKey, TargetModel, VariantName, model_key
from flatshare.core.state import EndpointRoute, Routes, VariantRoute
from flatshare.gateway.cold import ColdStarts
from flatshare.gateway.releases import Versions
from flatshare.policy import route
from flatshare.policy.route import InstanceLoad
from flatshare.wire.sagemaker import artifact_uri


@dataclass(slots=True)
class Upstream:
    """One instance as the gateway sees it."""

    id: InstanceId
    client: InstanceClient
    in_flight: int = 0

    def __enter__(self) -> InstanceClient:
        self.in_flight += 1
        return self.client

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1


class RouteTable:
    """Replaced as a whole by control, read by every request."""

    def __init__(self, account: str) -> None:
        self._account = account
        self.versions = Versions()
        """Which artifact a target model with a label stands for."""
        self.cold_starts = ColdStarts()
        """Which calls had to wait where they were sent."""
        self._routes = Routes({})
        self._news = asyncio.Event()
        self._upstreams: dict[InstanceId, Upstream] = {}

    def replace(self, routes: Routes) -> None:
        """Take over what control published. Instances that have left answer what they were asked, and are asked no more."""
        addresses = {a.id: a for e in routes.endpoints.values() for v in (*e.variants, *e.shadows) for a in v.instances}
        for gone in self._upstreams.keys() - addresses.keys():
            self._upstreams.pop(gone).client.retire()
        for address in addresses.values():
            if address.id not in self._upstreams:
                self._upstreams[address.id] = Upstream(address.id, InstanceClient(address.socket_path))
        self._routes = routes
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, within_s: float) -> bool:
        """True as soon as control publishes something else; False if it does not within that time."""
        try:
            async with asyncio.timeout(within_s):
                return await self._news.wait()
        except TimeoutError:
            return False

    def close(self) -> None:
        for upstream in self._upstreams.values():
            upstream.client.close()
        self.replace(Routes({}))

    @property
    def routes(self) -> Routes:
        return self._routes

    @property
    def endpoints(self) -> dict[EndpointName, EndpointRoute]:
        return self._routes.endpoints

    def endpoint(self, name: EndpointName) -> EndpointRoute:
        """Raises UnknownEndpoint, in AWS's words."""
        try:
            return self._routes.endpoints[name]
        except KeyError:
            raise UnknownEndpoint(f"Endpoint {name} of account {self._account} not found.") from None

    def variant(self, endpoint: EndpointRoute, wanted: VariantName | None, point: float) -> VariantRoute:
        """One drawn by weight with `point` in [0, 1), of all, or of those of that name: while an update moves the traffic there are two.

        Raises UnknownVariant.
        """
        if wanted is None and len(endpoint.variants) == 1:
            return endpoint.variants[0]
        named = [variant for variant in endpoint.variants if wanted in {None, variant.name}]
        if named:
            return named[route.pick_weighted([variant.weight for variant in named], point)]
        names = ", ".join(dict.fromkeys(variant.name for variant in endpoint.variants))
        raise UnknownVariant(f"Endpoint {endpoint.name} has no production variant '{wanted}': it has {names}")

    def upstream(self, variant: VariantRoute, model: ModelKey, avoid: frozenset[InstanceId]) -> Upstream | None:
        """The instance for this model, other than those in `avoid`; None if there is none left."""
        known = [self._upstreams[a.id] for a in variant.instances if a.id not in avoid]
        if len(known) == 1:
            return known[0]
        loads = [InstanceLoad(upstream.id, upstream.in_flight) for upstream in known]
        return self._upstreams[route.choose(model, loads)] if loads else None

    def serving(self, variant: VariantRoute) -> list[Upstream]:
        return [self._upstreams[address.id] for address in variant.instances]

    def upstreams(self, endpoint: EndpointRoute) -> list[Upstream]:
        return [self._upstreams[address.id] for variant in (*endpoint.variants, *endpoint.shadows) for address in variant.instances]


@lru_cache(maxsize=16_384)
def model_address(prefix: str, target: TargetModel) -> tuple[ModelSource, ModelKey]:
    """Where the model lies, and its key. Hashing each time would cost more than the rest of the gateway's routing."""
    uri = artifact_uri(prefix, target)
    return ModelSource(uri, prefix), model_key(uri)
