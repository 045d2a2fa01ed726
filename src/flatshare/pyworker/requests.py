"""`pb_utils` requests, responses and errors, and the senders of decoupled models."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Protocol

from flatshare.pyworker.tensors import Tensor, TritonModelException

FINAL = 1
"""TRITONSERVER_RESPONSE_COMPLETE_FINAL"""


class TritonError:
    """What went wrong with one request, with a code."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(
        self,
        output_tensors: list[Tensor] | None = None,
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        tensors = list(output_tensors or ())
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise TritonModelException("output_tensors must hold pb_utils.Tensor objects only")
        self._tensors = tensors
        self._error = TritonError(str(error)) if error is not None and not isinstance(error, TritonError) else error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    @property
    def parameter_map(self) -> dict[str, Any]:
        """For the host."""
        return self._parameters


class Caller(Protocol):
    """What a request needs of the host to be sent to another model."""

    def call(self, request: "InferenceRequest", *, is_decoupled: bool) -> "list[InferenceResponse]":
        """The other model's answers."""


class InferenceResponseSender:
    """Sends the answers to one request of a decoupled model, from any thread, in any number."""

    def __init__(self, host: "Sending", request_id: int) -> None:
        self._host = host
        self._id = request_id
        self._is_final = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self._is_final:
            raise TritonModelException("a response was sent after the one with TRITONSERVER_RESPONSE_COMPLETE_FINAL")
        if response is None and not flags & FINAL:
            raise TritonModelException("send() without a response must at least have the flag TRITONSERVER_RESPONSE_COMPLETE_FINAL")
        self._is_final = bool(flags & FINAL)
        self._host.send_part(self._id, response, is_final=self._is_final)

    def is_cancelled(self) -> bool:
        return self._host.is_cancelled(self._id)

    @property
    def has_ended(self) -> bool:
        """For the host."""
        return self._is_final


class Sending(Protocol):
    """What a sender needs of the host."""

    def send_part(self, request_id: int, response: InferenceResponse | None, *, is_final: bool) -> None: ...

    def is_cancelled(self, request_id: int) -> bool: ...


class InferenceRequest:
    """A request: one that arrived, or one that a model makes to call another (`exec`)."""

    host: Caller
    """Bound by the copy of these utilities that each model has, see backend_utils.py."""

    def __init__(
        self,
        model_name: str,
        requested_output_names: list[str],
        inputs: list[Tensor],
        request_id: str = "",
        correlation_id: int | str = 0,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: object = None,  # noqa: ARG002  # there is only one kind of memory here
        trace: object = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self._model_name = model_name
        self._outputs = list(requested_output_names)
        self._inputs = list(inputs)
        self._id = request_id
        self._correlation_id = correlation_id
        self._version = model_version
        self._flags = flags
        self._timeout = timeout
        self._trace = trace
        self._parameters = dict(parameters or {})
        self._sender: InferenceResponseSender | None = None
        self._sending: tuple[Sending, int] | None = None

    def attach(self, host: Sending, request_id: int, *, has_sender: bool) -> None:
        """For the host: this request arrived, and may be answered by a sender."""
        self._sending = (host, request_id)
        self._sender = InferenceResponseSender(host, request_id) if has_sender else None

    @property
    def sender(self) -> InferenceResponseSender | None:
        """For the host."""
        return self._sender

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._version

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def set_release_flags(self, flags: int) -> None:
        if flags != 1:  # TRITONSERVER_REQUEST_RELEASE_ALL is what happens anyway
            raise TritonModelException("requests cannot be rescheduled here: only TRITONSERVER_REQUEST_RELEASE_ALL is supported")

    def timeout(self) -> int:
        return self._timeout

    def trace(self) -> object:
        return self._trace

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    @property
    def parameter_map(self) -> dict[str, Any]:
        """For the host."""
        return self._parameters

    def is_cancelled(self) -> bool:
        return self._sending is not None and self._sending[0].is_cancelled(self._sending[1])

    def get_response_sender(self) -> InferenceResponseSender:
        if self._sender is None:
            raise TritonModelException("only a decoupled model has a response sender: set model_transaction_policy { decoupled: true }")
        return self._sender

    def exec(self, decoupled: bool = False) -> Any:
        """Call the other model and wait: its response, or an iterator of them if `decoupled`."""
        responses = self.host.call(self, is_decoupled=decoupled)
        return iter(responses) if decoupled else responses[0]

    async def async_exec(self, decoupled: bool = False) -> Any:
        """The same, while other coroutines go on."""
        responses = await asyncio.to_thread(self.host.call, self, is_decoupled=decoupled)
        return _AsyncResponses(responses) if decoupled else responses[0]


class _AsyncResponses:
    def __init__(self, responses: list[InferenceResponse]) -> None:
        self._responses: Iterator[InferenceResponse] = iter(responses)

    def __aiter__(self) -> "_AsyncResponses":
        return self

    async def __anext__(self) -> InferenceResponse:
        for response in self._responses:
            return response
        raise StopAsyncIteration
