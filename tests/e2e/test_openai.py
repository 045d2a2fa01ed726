"""The OpenAI API with OpenAI's own client, and `/v1/rerank` as re-ranking clients call it; the Python API layer on the same models."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import orjson
import pytest
import requests

from flatshare.bench.server import RunningServer
from flatshare.client import AsyncModels, Models
from flatshare.core.errors import BadInput
from flatshare.core.signature import Task
from flatshare.release.deploying import Wish, deploy
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.release.site import flatshare_site
from tests.e2e.checkpoints import TEXT, expected, write_checkpoint
from tests.e2e.servers import serving
from tests.families import save_model
from tests.writers import TEMPLATE, llama, save, t5

pytestmark = pytest.mark.slow
PASSAGES = ["the order has not arrived", "my money back", "hello", "where is the parcel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openai")
    for seed, part in enumerate(("query", "document")):
        write_checkpoint(folder / part, 8000 + seed)
    save_model(folder / "ranker", "bert", Task.RANKING, seed=1)
    save_model(folder / "classifier", "bert", Task.CLASSIFICATION, seed=2)
    save(t5(1), folder / "t5")
    save(llama(1), folder / "llama", tokenizer_config={"chat_template": TEMPLATE, "bos_token": "!"})
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    wanted = [
        ("acme/embedding", "two-encoders", {part: folder / part for part in ("query", "document")}),
        ("acme/ranking", "ranker", {"": folder / "ranker"}),
        ("acme/intent", "classifier", {"": folder / "classifier"}),
        ("acme/autocomplete", "autocomplete", {"": folder / "t5"}),
        ("acme/drafts", "drafting", {"": folder / "llama"}),
    ]
    with serving(tmp_path_factory.mktemp("server"), memory="3GiB") as running:
        site = flatshare_site(running.url, f"file://{folder}/site")
        for model, layout, sources in wanted:
            request = PackageRequest(model, layout, sources, {}, None, "", "folder", folder / f"{layout}.package")
            deploy(site, make_package(request), Wish())
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("part", ["query", "document"])
def test_embeddings_in_both_encodings(client: openai.OpenAI, folder: Path, part: str) -> None:
    answers = [
        client.embeddings.create(model=f"acme/embedding/{part}", input=[TEXT, "hello"]),  # base64, the client's default
        client.embeddings.create(model=f"acme/embedding/{part}", input=[TEXT, "hello"], encoding_format="float"),
    ]
    for answer in answers:
        np.testing.assert_allclose(answer.data[0].embedding, expected(folder / part, TEXT), atol=1e-5)
        np.testing.assert_allclose(answer.data[1].embedding, expected(folder / part, "hello"), atol=1e-5)
        assert answer.usage.prompt_tokens == 6 + 3


def test_a_version_may_be_named(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="acme/embedding@1/query", input=TEXT).data) == 1


def test_models_are_listed_by_the_names_that_they_are_called_by(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "acme/autocomplete",
        "acme/drafts",
        "acme/embedding/document",
        "acme/embedding/query",
        "acme/intent",
        "acme/ranking",
    ]


@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        ("acme/nobody", openai.NotFoundError, "deploy it with"),
        ("acme/embedding", openai.NotFoundError, "it has the parts document, query"),
        ("gpt-4", openai.BadRequestError, "must be TENANT/NAME"),
        ("acme/intent", openai.BadRequestError, "is no embedding model"),
    ],
)
def test_what_is_wrong_is_an_error_of_their_client(
    client: openai.OpenAI, model: str, kind: type[openai.APIStatusError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        client.embeddings.create(model=model, input=TEXT)


def test_options_that_we_do_not_have_are_refused_not_ignored(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="a vector has the model's own width"):
        client.embeddings.create(model="acme/embedding/query", input=TEXT, dimensions=8)
    with pytest.raises(openai.NotFoundError, match="/v1/responses is not served here"):
        client.responses.create(model="acme/intent", input=TEXT)


def test_documents_are_ranked_as_the_api_layer_ranks_them(server: RunningServer) -> None:
    body = {"model": "acme/ranking", "query": TEXT, "documents": PASSAGES, "top_n": 3, "return_documents": True}
    answer = requests.post(f"{server.url}/v1/rerank", data=orjson.dumps(body), timeout=70)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    with Models("acme", url=server.url, batch_size=2) as models:
        ranked = models.rank(TEXT, PASSAGES)
    assert [result["index"] for result in results] == [item.index for item in ranked[:3]]
    np.testing.assert_allclose([result["relevance_score"] for result in results], [item.score for item in ranked[:3]], atol=1e-5)
    assert results[0]["document"]["text"] == PASSAGES[results[0]["index"]]
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)


def test_a_classifier_answers_through_the_api_layer(server: RunningServer) -> None:
    with Models("acme", url=server.url) as models:
        first, second = models.classify([TEXT, "hello"])
    assert first[0].score >= first[-1].score
    assert len(first) == len(second) > 1


GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
WRITERS = ["acme/autocomplete", "acme/drafts"]


@pytest.mark.parametrize("model", WRITERS)
def test_a_completion_is_what_the_api_layer_says(client: openai.OpenAI, server: RunningServer, model: str) -> None:
    answer = client.completions.create(model=model, prompt=[TEXT, "help me"], **GREEDY)
    with Models("acme", url=server.url) as models:
        wanted = models.complete([TEXT, "help me"], model=model.partition("/")[2], max_tokens=12)
    assert [choice.text for choice in answer.choices] == wanted
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", WRITERS)
def test_a_streamed_completion_is_the_whole_one_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=TEXT, **GREEDY)
    chunks = list(client.completions.create(model=model, prompt=TEXT, stream=True, stream_options={"include_usage": True}, **GREEDY))
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert len(texts) > 3
    assert "".join(texts) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_chat_is_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "where is my order"}]
    whole = client.chat.completions.create(model="acme/drafts", messages=messages, **GREEDY)
    parts = list(client.chat.completions.create(model="acme/drafts", messages=messages, stream=True, **GREEDY))
    assert whole.choices[0].message.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_several_texts_per_prompt_are_numbered_through(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "acme/drafts", "prompt": [TEXT, "help"], "n": 2, "seed": 1, "max_tokens": 6}
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = ["", "", "", ""]
    for chunk in client.completions.create(stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_parameters_of_ours_come_with_the_extra_body(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.completions.create(model="acme/autocomplete", prompt=TEXT, max_tokens=8, extra_body={"beams": 2})
    with Models("acme", url=server.url) as models:
        assert answer.choices[0].text == models.complete(TEXT, max_tokens=8, beams=2)[0]


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"model": "acme/intent"}, openai.BadRequestError, "acme/intent is no model that writes"),
        ({"model": "acme/intent", "stream": True}, openai.BadRequestError, "acme/intent is no model that writes"),
        ({"echo": True}, openai.BadRequestError, "'echo' is not supported"),
        ({"max_tokens": 0}, openai.BadRequestError, "'max_tokens' must be an integer from 1"),
        ({"prompt": [1, 2]}, openai.BadRequestError, "token ids differ"),
        ({"model": "acme/nobody"}, openai.NotFoundError, "deploy it with"),
    ],
)
def test_a_completion_that_cannot_be_is_an_error(
    client: openai.OpenAI, change: dict[str, Any], kind: type[openai.APIStatusError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        client.completions.create(**({"model": "acme/drafts", "prompt": TEXT} | change))


def test_a_model_without_a_template_does_not_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="template"):
        client.chat.completions.create(model="acme/autocomplete", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("model", ["autocomplete", "drafts"])
def test_the_api_layer_streams_and_awaits(server: RunningServer, model: str) -> None:
    async def awaited() -> tuple[list[str], list[str]]:
        async with AsyncModels("acme", url=server.url) as models:
            whole = await models.complete(TEXT, model=model, max_tokens=12)
            return whole, [piece async for piece in models.stream(TEXT, model=model, max_tokens=12)]

    with Models("acme", url=server.url) as models:
        pieces = list(models.stream(TEXT, model=model, max_tokens=12))
        whole, awaited_pieces = asyncio.run(awaited())
        assert "".join(pieces) == "".join(awaited_pieces) == whole[0]
        assert len(pieces) > 3
        with pytest.raises(BadInput, match="max_tokens"):
            list(models.stream(TEXT, model=model, max_tokens=0))


def test_whoever_stops_reading_early_may_call_on(server: RunningServer) -> None:
    with Models("acme", url=server.url) as models:
        pieces = models.stream(TEXT, model="drafts", max_tokens=200, min_tokens=200)
        first = next(pieces)
        pieces.close()
        assert models.complete(TEXT, model="drafts", max_tokens=1)[0].startswith(first[:1])
