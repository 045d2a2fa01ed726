"""Step 4 of a request's path: the instance's door, which speaks the container contract (wire/container.py)."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from urllib.parse import parse_qs

import orjson

from flatshare.core.call import ModelSource
from flatshare.core.errors import BadInput, FlatshareError, NeverFits, NotResident, OutOfMemory, Overloaded, OverQuota, TooLate
from flatshare.core.ids import ArtifactUri, ModelKey, model_key
from flatshare.core.readings import ModelMetric
from flatshare.instance.backends.base import Backend
from flatshare.instance.cache import ModelCache
from flatshare.instance.explain import Explainer
from flatshare.instance.serve import Server
from flatshare.instance.workbench import Workbench
from flatshare.policy.pressure import Signs
from flatshare.telemetry.journal import Journal
from flatshare.telemetry.log import CURRENT_REQUEST, get_logger
from flatshare.wire import container, faults
from flatshare.wire.http import REQUEST_ID, Reply, Request

log = get_logger("instance")
_REFUSALS: dict[type[FlatshareError], str] = {
    Overloaded: "overloaded", OverQuota: "over_quota", TooLate: "too_late", OutOfMemory: "no_room", NeverFits: "never_fits",
}  # fmt: skip
_PATH = re.compile(r"/models/(?P<key>[0-9A-Za-z._-]+)(?P<action>/invoke|/metadata|/artifact|/explain)?")


class InstanceApp:
    """Routes a request; `handle` is the whole of it."""

    def __init__(
        self,
        server: Server,
        cache: ModelCache,
        workbench: Workbench,
        journal: Journal,
        backend: Backend,
        explainer: Explainer,
        signs: Callable[[], Signs],
        single: ModelSource | None = None,
        model_metrics: Callable[[], list[ModelMetric]] = list,
    ) -> None:
        """`signs` is what the kernel said last, `single` the model of POST /invocations, `model_metrics` what models count."""
        self._server = server
        self._cache = cache
        self._workbench = workbench
        self._journal = journal
        self._backend = backend
        self._explainer = explainer
        self._signs = signs
        self._single = single
        self._refusals: Counter[str] = Counter()
        self._model_metrics = model_metrics
        self._fixed: dict[tuple[str, str], Callable[[Request], Awaitable[Reply]]] = {
            ("GET", "/ping"): self._ping,
            ("GET", "/models"): self._list,
            ("POST", "/models"): self._load,
            ("POST", "/invocations"): self._invoke_single,
            ("GET", "/flatshare/status"): self._status,
            ("PUT", "/flatshare/memory"): self._set_memory,
        }

    async def handle(self, request: Request) -> Reply:
        """Every request gets an answer: this is the boundary where what went wrong becomes a status."""
        CURRENT_REQUEST.set(request.headers.get(REQUEST_ID, b"-")[:64].decode("latin-1"))
        try:
            return await self._route(request)
        except FlatshareError as error:
            if (reason := _REFUSALS.get(type(error))) is not None:
                self._refusals[reason] += 1
            return container.error_reply(faults.container_status(error), type(error).__name__, str(error))
        except Exception as error:
            log.exception("request_failed", path=request.path)
            return container.error_reply(500, "InternalFailure", f"the model failed: {type(error).__name__}: {error}")

    def _route(self, request: Request) -> Awaitable[Reply]:
        path = _PATH.fullmatch(request.path)
        if path is not None and path["action"] == "/invoke" and request.method == "POST":  # first, since nearly all are
            return self._server.invoke(ModelKey(path["key"]), container.parse_source(request), request)
        if path is None:
            handler = self._fixed.get((request.method, request.path))
            if handler is None:
                raise BadInput(f"{request.method} {request.path} is not part of the container contract")
            return handler(request)
        return self._route_model(ModelKey(path["key"]), path["action"], request)

    async def _route_model(self, key: ModelKey, action: str | None, request: Request) -> Reply:
        reply = Reply(200)
        match request.method, action:
            case "GET", None:
                reply = self._describe(key)
            case "DELETE", None:
                await self._cache.unload(key)
            case "GET", "/metadata":
                reply = await self._server.describe(key, container.parse_source(request), request.header(container.MODEL_VERSION))
            case "GET", "/explain":
                reply = await self._explain(key, request)
            case "GET", "/artifact":
                await self._cache.require(key, container.parse_source(request))
            case _:
                raise BadInput(f"{request.method} {request.path} is not part of the container contract")
        return reply

    async def _ping(self, _: Request) -> Reply:
        return Reply(200)

    async def _load(self, request: Request) -> Reply:
        load = container.parse_load(request.body)
        await self._cache.load(load.key, load.source)
        return Reply(200, orjson.dumps(container.render_model(load.key, load.source.uri)))

    async def _invoke_single(self, request: Request) -> Reply:
        """A container with one model: its first request loads it."""
        if self._single is None:
            raise BadInput("this is a multi-model instance: POST /models/{name}/invoke, or start it with --model")
        return await self._server.invoke(model_key(ArtifactUri(self._single.uri)), self._single, request)

    async def _list(self, request: Request) -> Reply:
        after = parse_qs(request.query.decode("latin-1")).get("next_page_token", [""])[0]
        return container.render_models([(info.key, info.uri) for info in self._cache.snapshot()], after)

    def _describe(self, key: ModelKey) -> Reply:
        source = self._cache.source_of(key)
        if source is None:
            raise NotResident(f"model {key} is not loaded")
        return Reply(200, orjson.dumps(container.render_model(key, source.uri)))

    async def _explain(self, key: ModelKey, request: Request) -> Reply:
        source = container.parse_source(request) or self._cache.source_of(key)
        if source is None:
            raise NotResident(f"model {key} is not loaded: send its address in {container.SOURCE_URI}")
        return Reply(200, orjson.dumps(await self._explainer.explain(key, source)))

    async def _set_memory(self, request: Request) -> Reply:
        await self._cache.set_memory(container.parse_memory(request.body))
        return Reply(200, orjson.dumps(asdict(self._cache.balance())))

    async def _status(self, _: Request) -> Reply:
        thrash = self._cache.demand.thrash
        status = {
            "balance": asdict(self._cache.balance()),
            "signs": asdict(self._signs()),
            "engine": self._backend.statistics(),
            "model_metrics": [asdict(metric) for metric in self._model_metrics()],
            "in_flight": self._workbench.in_flight,
            "waiting": self._workbench.waiting,
            "waiting_by_class": {**self._workbench.waiting_by_class(), "load": len(self._cache.loading())},
            "waiting_by_tenant": self._workbench.waiting_by_tenant(),
            "merged": self._workbench.merged,
            "thrash": asdict(thrash) | {"index": thrash.index, "lacks_memory": self._cache.demand.lacks_memory},
            "models": [asdict(info) for info in self._cache.snapshot()],
            "decisions": [asdict(entry) for entry in self._journal.latest(50)],
            "decision_counts": self._journal.counts,
            "eviction_counts": self._journal.evictions,
            "refusal_counts": self._refusals,
        }
        return Reply(200, orjson.dumps(status))
