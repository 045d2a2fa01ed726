"""The OpenAI API with OpenAI's own client, and `/v1/rerank` as re-ranking clients call it; the Python API layer on the same models."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import orjson
import pytest
import requests

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from flatshare.core.signature import Task
from flatshare.release.deploying import Wish, deploy
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.release.site import flatshare_site
from tests.e2e.checkpoints import TEXT, expected, write_checkpoint
from tests.e2e.servers import serving
from tests.families import save_model

pytestmark = pytest.mark.slow
PASSAGES = ["the order has not arrived", "my money back", "hello", "where is the parcel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openai")
    for seed, part in enumerate(("query", "document")):
        write_checkpoint(folder / part, 8000 + seed)
    save_model(folder / "ranker", "bert", Task.RANKING, seed=1)
    save_model(folder / "classifier", "bert", Task.CLASSIFICATION, seed=2)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    wanted = [
        ("acme/embedding", "two-encoders", {part: folder / part for part in ("query", "document")}),
        ("acme/ranking", "ranker", {"": folder / "ranker"}),
        ("acme/intent", "classifier", {"": folder / "classifier"}),
    ]
    with serving(tmp_path_factory.mktemp("server")) as running:
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
