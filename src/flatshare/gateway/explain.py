"""Which instance a model belongs to, and what that instance says of it: for `flatshare explain`."""

from typing import Any
from urllib.parse import parse_qs

import orjson

from flatshare.core.call import ModelSource
from flatshare.core.errors import BadInput, InstanceGone
from flatshare.core.ids import EndpointName, TargetModel, VariantName, model_key
from flatshare.gateway.routes import RouteTable
from flatshare.wire import container, sagemaker
from flatshare.wire.http import Reply, Request

_TIMEOUT_S = 30.0  # the instance may ask a slow store


class ModelExplainer:
    """`GET /flatshare/explain?target=acme/query&endpoint=embeddings`; the endpoint may be left out if there is only one."""

    def __init__(self, routes: RouteTable) -> None:
        self._routes = routes

    async def explain(self, request: Request) -> Reply:
        """Raises BadInput, UnknownEndpoint, UnknownVariant or InstanceGone."""
        asked = {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}
        target = sagemaker.checked_target(asked.get("target", ""))
        endpoint = self._routes.endpoint(self._endpoint(asked.get("endpoint")))
        variant = self._routes.variant(endpoint, VariantName(asked["variant"]) if "variant" in asked else None, 0.0)
        source = ModelSource(sagemaker.artifact_uri(variant.prefix, TargetModel(target)), variant.prefix)
        key = model_key(sagemaker.artifact_uri(variant.prefix, TargetModel(target)))
        upstream = self._routes.upstream(variant, key, frozenset())
        if upstream is None:
            raise InstanceGone(f"no instance of variant {variant.name} answers at the moment: call again in a few seconds")
        headers = container.source_headers(source)
        reply = await upstream.client.request("GET", f"/models/{key}/explain", headers=headers, timeout_s=_TIMEOUT_S)
        if reply.status != 200:
            return reply
        said: dict[str, Any] = orjson.loads(reply.body)
        return Reply(200, orjson.dumps({"endpoint": endpoint.name, "variant": variant.name, "instance": upstream.id} | said))

    def _endpoint(self, name: str | None) -> EndpointName:
        known = sorted(self._routes.endpoints)
        if name is None and len(known) != 1:
            raise BadInput(f"say which endpoint: {', '.join(known) or 'none is in service'}")
        return EndpointName(name if name is not None else known[0])
