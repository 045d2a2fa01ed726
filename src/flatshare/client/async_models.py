"""The API layer for programs that run on an event loop. boto3 has no such form, so each call takes a thread while it waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from flatshare.client.answers import Embeddings, Label, Outputs, Ranked
from flatshare.client.aws import CONNECTIONS
from flatshare.client.models import Models, Texts
from flatshare.core.call import Scalar
from flatshare.core.signature import Task

T = TypeVar("T")


class AsyncModels:
    """`Models`, awaited. Takes the same arguments; up to 32 calls are under way at a time, the others wait for their turn."""

    def __init__(self, tenant: str, **options: Any) -> None:
        self._models = Models(tenant, **options)
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="flatshare-async")

    async def embed(self, texts: Texts, *, role: str = "query", model: str = "embedding") -> Embeddings:
        """See `Models.embed`."""
        return await self._on_thread(partial(self._models.embed, texts, role=role, model=model))

    async def classify(self, texts: Texts, *, model: str = "intent") -> list[list[Label]]:
        """See `Models.classify`."""
        return await self._on_thread(partial(self._models.classify, texts, model=model))

    async def rank(self, query: str, passages: Sequence[str], *, model: str = "ranking") -> list[Ranked]:
        """See `Models.rank`."""
        return await self._on_thread(partial(self._models.rank, query, passages, model=model))

    async def complete(self, prompts: Texts, *, model: str = "autocomplete", **parameters: Scalar) -> list[str]:
        """See `Models.complete`."""
        return await self._on_thread(partial(self._models.complete, prompts, model=model, **parameters))

    async def stream(self, prompt: str, *, model: str = "autocomplete", **parameters: Scalar) -> AsyncIterator[str]:
        """See `Models.stream`. Whoever leaves the loop early closes the connection, and with it the writing."""
        pieces = self._models.stream(prompt, model=model, **parameters)
        try:
            while (piece := await self._on_thread(partial(next, pieces, None))) is not None:
                yield piece
        finally:
            pieces.close()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any] | Sequence[str]],
        *,
        kind: str = Task.TENSORS,
        part: str = "",
        wanted: Sequence[str] = (),
        **parameters: Scalar,
    ) -> Outputs:
        """See `Models.infer`."""
        return await self._on_thread(partial(self._models.infer, model, inputs, kind=kind, part=part, wanted=wanted, **parameters))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._models.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
