"""A door of step 1: InvokeEndpoint, with the errors that boto3 expects."""

from functools import partial

from flatshare.core.errors import BadInput, BadPackage, FlatshareError, ModelFailed, NeverFits, TooSlow
from flatshare.core.settings import GatewaySettings
from flatshare.gateway.invoke import Answered, Ask, Invoker, Stopwatch
from flatshare.wire import container, sagemaker
from flatshare.wire.http import Reply, require_body_within
from flatshare.wire.sagemaker import Invocation, LogPlace

_KEPT = {container.MODEL_DIGEST, container.COLD_START_MS, container.MODEL_MS, b"x-amzn-sagemaker-custom-attributes"}
_OF_THE_MODEL = (BadInput, BadPackage, NeverFits, ModelFailed, TooSlow)


class SageMakerDoor:
    def __init__(self, invoker: Invoker, settings: GatewaySettings, *, region: str, account: str) -> None:
        self._invoker = invoker
        self._max_body_bytes = settings.max_body_bytes
        self._region = region
        self._account = account

    async def invoke(self, call: Invocation) -> Reply:
        """Always a reply: what went wrong becomes the contract's error."""
        watch, answered = Stopwatch(), None
        ask = Ask(
            call.endpoint,
            call.target,
            next(self._invoker.request_ids),
            variant=call.variant,
            headers=tuple(call.forwarded_headers),
            body=call.request.body,
        )
        try:
            require_body_within(call.request, self._max_body_bytes)
            answered = await self._invoker.ask(ask)
            reply = self._reply(ask, answered)
        except FlatshareError as error:
            reply = sagemaker.error_reply(error, ask.request_id)
        reply.afterwards = partial(self._invoker.settle, ask, reply.status, watch.seconds, answered)
        return reply

    def _reply(self, ask: Ask, answered: Answered) -> Reply:
        answer = answered.reply
        if answer.status >= 300:
            return self._error(ask, answer)
        kept = [pair for pair in answer.headers if pair[0] in _KEPT]
        variant = (b"x-amzn-invoked-production-variant", answered.variant.name.encode())
        return Reply(answer.status, answer.body, answer.content_type, [*kept, variant, (b"x-amzn-requestid", ask.request_id.encode())])

    def _error(self, ask: Ask, answer: Reply) -> Reply:
        """The model's own errors become 424 ModelError; the platform's keep their meaning."""
        error = container.error_in(answer)
        if isinstance(error, _OF_THE_MODEL):
            place = LogPlace(self._region, self._account, ask.endpoint)
            return sagemaker.model_error_reply(answer.status, str(error), place, ask.request_id)
        return sagemaker.error_reply(error, ask.request_id)
