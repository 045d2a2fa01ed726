"""A door of step 1: the OpenAI API, for the models that were deployed as versions: `model="acme/embedding/query"`."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from flatshare.core.errors import FlatshareError, UnknownTarget
from flatshare.core.ids import EndpointName
from flatshare.core.naming import LIVE, labelled_target
from flatshare.core.settings import GatewaySettings
from flatshare.core.signature import Task
from flatshare.gateway.call import Answer, ModelCall
from flatshare.gateway.invoke import Invoker, Outcome, stopwatch
from flatshare.gateway.routes import RouteTable
from flatshare.gateway.streaming import RewrittenParts
from flatshare.gateway.visitor import Visitor
from flatshare.security.entry import Entry
from flatshare.telemetry.log import get_logger
from flatshare.telemetry.metrics import UNKNOWN
from flatshare.wire import asks, container, openai, openai_writing
from flatshare.wire.http import Parts, Reply, Request, require_body_within
from flatshare.wire.openai import NamedModel
from flatshare.wire.openai_writing import Choices, Envelope, WritingCall

log = get_logger("gateway")
PREFIX = "/v1/"
_READERS = {Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING}
_HEADERS = ((b"content-type", b"application/json"),)
_KEPT = {container.MODEL_DIGEST, container.COLD_START_MS, container.QUEUE_MS, container.MODEL_MS}


class OpenAIDoor:
    def __init__(self, invoker: Invoker, routes: RouteTable, entry: Entry, settings: GatewaySettings) -> None:
        self._invoker = invoker
        self._routes = routes
        self._entry = entry
        self._max_body_bytes = settings.max_body_bytes
        self._calls: dict[tuple[str, str], Callable[[Request], Awaitable[Reply]]] = {
            ("POST", "/v1/embeddings"): self._embed,
            ("POST", "/v1/completions"): partial(self._write, openai_writing.parse_completion),
            ("POST", "/v1/chat/completions"): partial(self._write, openai_writing.parse_chat),
            ("POST", "/v1/rerank"): self._rerank,
            ("GET", "/v1/models"): self._models,
        }

    async def handle(self, request: Request) -> Reply:
        """Always a reply, in the form that OpenAI's clients read."""
        try:
            call = self._calls.get((request.method, request.path))
            if call is None:
                known = ", ".join(f"{method} {path}" for method, path in self._calls)
                raise UnknownTarget(f"{request.method} {request.path[:200]} is not served here: known are {known}")
            require_body_within(request, self._max_body_bytes)
            return await call(request)
        except FlatshareError as error:
            return openai.error_reply(error, str(error))
        except Exception as error:  # the request boundary
            log.exception("request_failed", path=request.path)
            return openai.error_reply(error, f"an internal error: look for request {request.id} in the server's log")

    async def _embed(self, request: Request) -> Reply:
        call = openai.parse_embedding(request.body)
        return await self._ask(request, call.model, call.body, partial(openai.render_embedding, call))

    async def _rerank(self, request: Request) -> Reply:
        call = openai.parse_rerank(request.body)
        return await self._ask(request, call.model, call.body, partial(openai.render_rerank, call))

    async def _write(self, parse: Callable[[bytes], WritingCall], request: Request) -> Reply:
        call = parse(request.body)
        releases = self._routes.versions.find(call.model.model)
        if releases is not None and releases.kind in _READERS:
            self._call(request, call.model, b"")  # who may not call it must not hear what it is
            raise openai_writing.not_writing(call)
        envelope = Envelope(call, request.id, int(time.time()))
        render = partial(openai_writing.render, envelope)
        return await self._ask(request, call.model, call.body, render, envelope if call.is_streamed else None)

    async def _models(self, request: Request) -> Reply:
        """Those that the caller may call; one with parts by the name of each part."""
        visitor = Visitor(self._entry, request.id, lambda: request)
        names = []
        for releases in self._routes.versions.known():
            live = releases.aliases.get(LIVE)
            if live is not None and visitor.may_invoke(releases.endpoint, labelled_target(releases.model, LIVE)):
                parts = releases.version(live.version).targets
                names += [f"{releases.model}/{part}" if part else releases.model for part in parts]
        return Reply(200, openai.render_models(sorted(names)))

    async def _ask(
        self, request: Request, named: NamedModel, body: bytes, render: Callable[[bytes], bytes], streamed: Envelope | None = None
    ) -> Reply:
        """`streamed` is what stands around the parts of an answer that is to come in parts."""
        seconds, call, answer, status = stopwatch(), None, None, 500
        try:
            with self._invoker.admitted():
                call = self._call(request, named, body)
                if streamed is not None:
                    call = replace(call, headers=(*call.headers, (container.STREAM, b"1")), takes_parts=True)
                answer = await self._invoker.ask(call)
                reply = _rendered(answer, render, streamed)
                status = reply.status
        except FlatshareError as error:
            reply = openai.error_reply(error, str(error))
            status = reply.status
        outcome = Outcome(EndpointName(UNKNOWN) if call is None else call.endpoint, status, seconds(), call, answer)
        reply.afterwards = partial(self._invoker.settle, outcome)
        return reply

    def _call(self, request: Request, named: NamedModel, body: bytes) -> ModelCall:
        releases = self._routes.versions.find(named.model)
        target = labelled_target(named.model, named.label, named.part)
        endpoint = EndpointName("") if releases is None else releases.endpoint
        Visitor(self._entry, request.id, lambda: request).require(asks.INVOKE, endpoint, target)
        if releases is None or releases.resolve(named.label, named.part, 1.0) is None:
            parts = sorted({part for version in releases.versions for part in version.targets if part}) if releases else []
            hint = f"it has the parts {', '.join(parts)}" if parts else "deploy it with 'flatshare deploy PACKAGE'"
            raise UnknownTarget(f"model '{named.name}' is not deployed: {hint}; GET /v1/models lists those that are")
        return ModelCall(endpoint, target, request.id, headers=_HEADERS, body=body)


def _rendered(answer: Answer, render: Callable[[bytes], bytes], streamed: Envelope | None) -> Reply:
    if answer.reply.status >= 300:
        raise container.error_in(answer.reply)
    headers = [pair for pair in answer.reply.headers if pair[0] in _KEPT]
    if streamed is None:
        return Reply(200, render(answer.reply.body), headers=headers)
    if answer.reply.parts is None:
        raise openai_writing.not_writing(streamed.call)
    return Reply(200, content_type=b"text/event-stream", headers=headers, parts=_as_events(answer.reply.parts, streamed))


def _as_events(parts: Parts, envelope: Envelope) -> RewrittenParts:
    """A stream of ours as OpenAI's clients read it; they raise the event that a broken one ends with."""
    index_of = Choices(envelope.call)

    def rewrite(lines: bytes) -> tuple[bytes, bool]:
        return b"".join(openai_writing.render_line(envelope, line, index_of) for line in lines.splitlines() if line), False

    return RewrittenParts(parts, rewrite, lambda error: openai_writing.stream_error(str(error), type(error).__name__))
