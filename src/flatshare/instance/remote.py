"""Step 6 for models of other processes: asked on the event loop, within the caller's deadline, with what its headers say to the model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import ModelFailed, TooLate
from flatshare.core.ids import Tenant
from flatshare.instance.backends.base import RemoteModel
from flatshare.instance.job import Run
from flatshare.wire.container import CUSTOM_ATTRIBUTES
from flatshare.wire.http import Request

_MAX_ATTRIBUTES = 1024  # as AWS has it, each way


async def run(model: RemoteModel, call: InferCall, tenant: Tenant, deadline_s: float | None) -> Run[InferResult]:
    """Raises TooLate, and what the model raises."""
    started_s = time.perf_counter()
    async with within(deadline_s):
        result = await model.infer(call, tenant, deadline_s)
    return Run(result, time.perf_counter() - started_s, waited_s=0.0)


@asynccontextmanager
async def within(deadline_s: float | None) -> AsyncIterator[None]:
    """By the event loop's clock, which is time.monotonic. Raises TooLate; whoever waits in line leaves it."""
    try:
        async with asyncio.timeout_at(deadline_s):
            yield
    except TimeoutError:
        raise TooLate("the deadline passed before the model had answered: call again later, or allow more time") from None


def with_attributes(call: InferCall, request: Request) -> InferCall:
    """The caller's custom attributes are a parameter of the model's request."""
    said = request.header(CUSTOM_ATTRIBUTES.lower())
    return replace(call, parameters={**call.parameters, CUSTOM_ATTRIBUTES: said}) if said else call


def split_attributes(result: InferResult) -> tuple[InferResult, list[tuple[bytes, bytes]]]:
    """A response's parameter of that name is a header of the answer. Raises ModelFailed if it cannot be one."""
    if CUSTOM_ATTRIBUTES not in result.parameters:
        return result, []
    said = str(result.parameters[CUSTOM_ATTRIBUTES])
    if len(said) > _MAX_ATTRIBUTES or not (said.isascii() and said.isprintable()):
        raise ModelFailed(f"the model's {CUSTOM_ATTRIBUTES} must be at most {_MAX_ATTRIBUTES} characters of visible ASCII")
    rest = {name: value for name, value in result.parameters.items() if name != CUSTOM_ATTRIBUTES}
    return replace(result, parameters=rest), [(CUSTOM_ATTRIBUTES.lower().encode(), said.encode())]
