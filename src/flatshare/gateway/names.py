"""Model names of the Open Inference Protocol: `endpoint/target-model`, or the bare target model where one endpoint has it."""

import asyncio
import time
from dataclasses import dataclass

from flatshare.core.errors import AmbiguousModel, UnknownEndpoint, UnknownTarget
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.state import EndpointRoute
from flatshare.gateway.call import ModelCall
from flatshare.gateway.invoke import Invoker
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.visitor import Visitor
from flatshare.wire import container, sagemaker

_TRUSTED_S = 60.0  # how long a bare name goes to the endpoint where it was found, without another look at the stores
_MOST_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model, addressed. `name` is what the caller said, and what answers call it."""

    name: str
    endpoint: EndpointName
    target: TargetModel


@dataclass(frozen=True, slots=True)
class _Found:
    model: ModelName
    at_s: float
    among: frozenset[EndpointName]


class ModelNames:
    def __init__(self, routes: RouteTable, invoker: Invoker) -> None:
        self._routes = routes
        self._invoker = invoker
        self._found: dict[str, _Found] = {}

    async def resolve(self, name: str, visitor: Visitor) -> ModelName:
        """Raises AccessDenied, UnknownEndpoint, UnknownTarget, or AmbiguousModel with the names that would do.

        A bare name is looked for where the visitor may go. Of other endpoints it learns nothing, not even that they are there.
        """
        head, _, rest = name.partition("/")
        if rest and head in self._routes.endpoints:
            model = ModelName(name, EndpointName(head), sagemaker.checked_target(rest))
            if visitor.may_invoke(model.endpoint, model.target):
                return model
        target = sagemaker.checked_target(name)
        endpoints = tuple(endpoint for endpoint in self._routes.endpoints if visitor.may_invoke(endpoint, target))
        if not endpoints:
            visitor.require_everything(name)
            raise UnknownEndpoint(f"model '{name[:256]}' is not found: no endpoint is in service")
        if len(endpoints) == 1:
            return ModelName(name, endpoints[0], target)
        found = self._found.get(name)
        if found is None or found.among != frozenset(endpoints) or time.monotonic() - found.at_s > _TRUSTED_S:
            found = self._remember(await self._search(name, target, endpoints, visitor), frozenset(endpoints))
        return found.model

    def name_of(self, uri: str, endpoint: EndpointName) -> str | None:
        """The full name of the model at an address; None if it is none of the endpoint's."""
        route: EndpointRoute | None = self._routes.endpoints.get(endpoint)
        for variant in route.variants if route else ():
            prefix = variant.prefix.rstrip("/") + "/"
            if uri.startswith(prefix):
                return f"{endpoint}/{uri.removeprefix(prefix)}"
        return None

    async def _search(self, name: str, target: TargetModel, endpoints: tuple[EndpointName, ...], visitor: Visitor) -> ModelName:
        """Which endpoint has it. All must have answered: a model of the one must never be taken for one of the other."""
        has = await asyncio.gather(*(self._has(endpoint, target, visitor.request_id) for endpoint in endpoints))
        holders = [endpoint for endpoint, is_there in zip(endpoints, has, strict=True) if is_there]
        if len(holders) == 1:
            return ModelName(name, holders[0], target)
        if holders:
            candidates = ", ".join(f"'{endpoint}/{target}'" for endpoint in holders)
            raise AmbiguousModel(f"model name '{name[:256]}' is ambiguous: call it {candidates}")
        listed = ", ".join(endpoints[:10])
        raise UnknownTarget(f"model '{name[:256]}' is not found in any endpoint. Names are endpoint/target-model; endpoints are {listed}")

    async def _has(self, endpoint: EndpointName, target: TargetModel, request_id: str) -> bool:
        reply = (await self._invoker.ask(ModelCall(endpoint, target, request_id, method="GET", action="/artifact"))).reply
        if reply.status == 200:
            return True
        error = container.error_in(reply)
        if isinstance(error, UnknownTarget):
            return False
        raise error

    def _remember(self, model: ModelName, among: frozenset[EndpointName]) -> _Found:
        if len(self._found) >= _MOST_NAMES:
            self._found.clear()
        found = self._found[model.name] = _Found(model, time.monotonic(), among)
        return found
