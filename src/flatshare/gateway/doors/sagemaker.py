"""A door of step 1: InvokeEndpoint, with the errors that boto3 expects."""

from functools import partial

from flatshare.core.errors import FlatshareError
from flatshare.core.settings import GatewaySettings
from flatshare.gateway import streaming
from flatshare.gateway.call import Answer, ModelCall
from flatshare.gateway.invoke import OF_THE_MODEL, Invoker, Outcome, stopwatch
from flatshare.gateway.routes import RouteTable
from flatshare.wire import container, sagemaker
from flatshare.wire.http import REQUEST_ID, Reply, require_body_within
from flatshare.wire.sagemaker import Invocation, LogPlace

_KEPT = {container.MODEL_DIGEST, container.COLD_START_MS, container.QUEUE_MS, container.MODEL_MS, *sagemaker.RETURNED}


class SageMakerDoor:
    def __init__(self, invoker: Invoker, routes: RouteTable, settings: GatewaySettings, *, region: str, account: str) -> None:
        self._invoker = invoker
        self._routes = routes
        self._max_body_bytes = settings.max_body_bytes
        self._region = region
        self._account = account

    async def invoke(self, request: Invocation) -> Reply:
        """Always a reply: what went wrong becomes the contract's error."""
        seconds = stopwatch()
        call: ModelCall | None = None
        answer: Answer | None = None
        try:
            with self._invoker.admitted():
                call = self._call(request)
                answer = await self._invoker.ask(call)
                reply = self._reply(call, answer)
                if request.is_streamed:
                    reply = streaming.framed(reply)
        except FlatshareError as error:
            reply = sagemaker.error_reply(error, request.request.id)
        outcome = Outcome(request.endpoint, reply.status, seconds(), call, answer)
        reply.afterwards = partial(self._invoker.settle, outcome)
        return reply

    def _call(self, request: Invocation) -> ModelCall:
        require_body_within(request.request, self._max_body_bytes)
        self._routes.endpoint(request.endpoint)
        sagemaker.refuse_foreign_headers(request)
        if request.target is None:
            raise sagemaker.missing_target(request.request.id)
        headers, body = tuple(request.forwarded_headers), request.request.body
        if request.is_streamed:
            headers = (*headers, (container.STREAM, b"1"))
        return ModelCall(request.endpoint, request.target, request.request.id, request.variant, headers, body, takes_parts=True)

    def _reply(self, call: ModelCall, answer: Answer) -> Reply:
        said = answer.reply
        if said.status >= 300:
            return self._error(call, said)
        kept = [pair for pair in said.headers if pair[0] in _KEPT]
        variant = (b"x-amzn-invoked-production-variant", answer.variant.name.encode())
        headers = [*kept, variant, (REQUEST_ID, call.request_id.encode())]
        return Reply(said.status, said.body, said.content_type, headers, parts=said.parts)

    def _error(self, call: ModelCall, said: Reply) -> Reply:
        """The model's own errors become 424 ModelError; the platform's keep their meaning."""
        error = container.error_in(said)
        if isinstance(error, OF_THE_MODEL):
            place = LogPlace(self._region, self._account, call.endpoint)
            return sagemaker.model_error_reply(said.status, str(error), place, call.request_id)
        return sagemaker.error_reply(error, call.request_id)
