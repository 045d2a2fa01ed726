"""The API layer: one object per tenant for inference over every model. Callers never name an endpoint.

    models = Models("acme")
    models.embed(["where is my parcel?"], role="query").vectors
    models.classify(["I want my money back"], model="intent")
    models.rank("where is my parcel?", passages)
    models.complete(["Dear customer,"])

Which endpoint and target model answer follows from tenant, task and request (`core/naming.py`); which version that is, the server decides.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self, TypeVar

from botocore.exceptions import EventStreamError, HTTPClientError
from numpy.typing import NDArray

from flatshare.client import bodies
from flatshare.client.answers import Embeddings, Label, Outputs, Ranked
from flatshare.client.aws import runtime_client
from flatshare.client.bodies import Answer, Body
from flatshare.client.retrying import Patience, call_patiently
from flatshare.client.stream import invoke_with_response_stream, lines_of
from flatshare.core import naming
from flatshare.core.call import Scalar
from flatshare.core.errors import CallFailed
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.naming import DEFAULT_FLEET, LIVE
from flatshare.core.signature import Task

T = TypeVar("T")
Texts = str | Sequence[str]
_PARALLEL_CALLS = 4  # of one long list; more would crowd out other callers
_DEFAULT_URL = "http://127.0.0.1:8080"


class Resolver(Protocol):
    """Where no gateway looks aliases up, something else has to: on AWS, the release record beside the artifacts."""

    def resolve(self, endpoint: EndpointName, target: TargetModel) -> TargetModel:
        """The artifact that a labelled target model stands for at this moment."""


class Models:
    """A tenant's models. May be used from several threads; `close` it, or use it in a `with`.

    `url` is a flatshare server; without it FLATSHARE_URL, then http://127.0.0.1:8080. With `resolver` and no url the calls go to AWS.
    """

    def __init__(
        self,
        tenant: str,
        *,
        url: str | None = None,
        fleet: str = DEFAULT_FLEET,
        label: str = LIVE,
        batch_size: int = 64,
        patience: Patience | None = None,
        resolver: Resolver | None = None,
        region: str | None = None,
    ) -> None:
        self.tenant = tenant
        naming.model_name(tenant, "x")
        self._fleet = fleet
        self._label = label
        self._batch_size = batch_size
        self._patience = patience or Patience()
        self._resolver = resolver
        if url is None and resolver is None:
            url = os.environ.get("FLATSHARE_URL", _DEFAULT_URL)
        self._runtime = runtime_client(url, region=region)
        self._threads: ThreadPoolExecutor | None = None

    def embed(self, texts: Texts, *, role: str = "query", model: str = "embedding") -> Embeddings:
        """One vector per text, by the encoder for this role: query and document encoders of one model belong together."""
        parts = self._each(Task.EMBEDDING, model, role, texts, {}, bodies.embeddings_of)
        return bodies.joined(parts)

    def classify(self, texts: Texts, *, model: str = "intent") -> list[list[Label]]:
        """The labels of each text, the surest first."""
        return _chained(self._each(Task.CLASSIFICATION, model, "", texts, {}, bodies.labels_of))

    def rank(self, query: str, passages: Sequence[str], *, model: str = "ranking") -> list[Ranked]:
        """The passages by how well they answer the query, the best first."""

        def rank_batch(batch: Sequence[str]) -> list[Ranked]:
            return bodies.ranks_of(self._call(Task.RANKING, model, "", bodies.ranking_body(query, batch)))

        parts = self._mapped(rank_batch, list(bodies.batches(passages, self._batch_size)))
        starts = _starts(parts)
        found = [Ranked(start + item.index, item.score) for start, part in zip(starts, parts, strict=False) for item in part]
        return sorted(found, key=lambda item: -item.score)

    def complete(self, prompts: Texts, *, model: str = "autocomplete", **parameters: Scalar) -> list[str]:
        """A continuation of each prompt. Parameters are the model's, such as max_tokens and temperature."""
        return _chained(self._each(Task.GENERATION, model, "", prompts, parameters, bodies.texts_of))

    def stream(self, prompt: str, *, model: str = "autocomplete", **parameters: Scalar) -> Generator[str, None, None]:
        """The continuation of one prompt, piece by piece as it is written. On AWS, whose multi-model endpoints do not stream, one piece.

        Nothing is tried again once a piece has come; a failure in the middle raises CallFailed.
        """
        if self._resolver is not None:
            yield from self.complete(prompt, model=model, **parameters)
            return
        endpoint, target = self._address(Task.GENERATION, model, "")
        body = bodies.texts_body([prompt], parameters)
        parts = call_patiently(lambda: invoke_with_response_stream(self._runtime, endpoint, target, body.payload), self._patience)
        try:
            for line in lines_of(parts):
                if "text" in line:
                    yield line["text"]
        except (EventStreamError, HTTPClientError) as error:
            raise CallFailed(f"the answer broke off in the middle: {error}") from error
        finally:
            parts.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any] | Sequence[str]],
        *,
        kind: str = Task.TENSORS,
        part: str = "",
        wanted: Sequence[str] = (),
        **parameters: Scalar,
    ) -> Outputs:
        """Tensors in, tensors out, for a model of any kind."""
        return bodies.outputs_of(self._call(kind, model, part, bodies.tensors_body(inputs, wanted, parameters)))

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(
        self, kind: str, model: str, part: str, texts: Texts, parameters: Mapping[str, Scalar], read: Callable[[Answer], T]
    ) -> list[T]:
        """One call per batch of texts."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        found = list(bodies.batches(listed, self._batch_size))
        return self._mapped(lambda batch: read(self._call(kind, model, part, bodies.texts_body(batch, parameters))), found)

    def _mapped(self, call: Callable[[Sequence[str]], T], found: list[Sequence[str]]) -> list[T]:
        if len(found) == 1:
            return [call(found[0])]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_PARALLEL_CALLS, thread_name_prefix="flatshare-client")
        return list(self._threads.map(call, found))

    def _call(self, kind: str, model: str, part: str, body: Body) -> Answer:
        endpoint, target = self._address(kind, model, part)
        return call_patiently(lambda: self._invoke(endpoint, target, body), self._patience)

    def _address(self, kind: str, model: str, part: str) -> tuple[EndpointName, TargetModel]:
        endpoint = naming.endpoint_name(kind, self._fleet)
        named = naming.labelled_target(naming.model_name(self.tenant, model), self._label, part)
        return endpoint, named if self._resolver is None else self._resolver.resolve(endpoint, named)

    def _invoke(self, endpoint: EndpointName, target: TargetModel, body: Body) -> Answer:
        reply = self._runtime.invoke_endpoint(EndpointName=endpoint, TargetModel=target, ContentType=body.content_type, Body=body.payload)
        digest = reply["ResponseMetadata"]["HTTPHeaders"].get("x-flatshare-model-digest", "")
        return Answer(reply["Body"].read(), reply.get("ContentType", bodies.JSON_TYPE), digest)


def _chained(parts: list[list[T]]) -> list[T]:
    return [item for part in parts for item in part]


def _starts(parts: Sequence[Sequence[object]]) -> list[int]:
    """The index of each batch's first item."""
    starts = [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + len(part))
    return starts
