"""Every task through the whole server, in plain form and as v2 tensors: text in, labels and ranks out."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flatshare.bench.server import RunningServer
from flatshare.core.signature import Task
from tests.e2e.servers import Endpoint, deploy, failure_of
from tests.families import fast_tokenizer, save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LABELS = {0: "refund", 1: "été", 2: "other"}
TEXTS = ["the order has not arrived yet", "thank you"]


@pytest.fixture(scope="module")
def tasks(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    folder = tmp_path_factory.mktemp("tasks")
    save_model(folder / "embed", "mpnet", Task.EMBEDDING)
    save_model(folder / "classify", "roberta", Task.CLASSIFICATION, id2label=LABELS)
    save_model(folder / "tag", "bert", Task.TOKEN_CLASSIFICATION, id2label=LABELS)
    save_model(folder / "rank", "electra", Task.RANKING)
    return deploy(server, "tasks", folder)


def invoke(tasks: Endpoint, target: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = tasks.server.runtime.invoke_endpoint(
        EndpointName=tasks.name, TargetModel=target, ContentType="application/json", Body=orjson.dumps(body)
    )
    answer: dict[str, Any] = orjson.loads(reply["Body"].read())
    return answer


def v2(tasks: Endpoint, target: str, *tensors: tuple[str, str, list[Any]], **fields: Any) -> dict[str, Any]:
    """The outputs by name."""
    inputs = [{"name": n, "datatype": t, "shape": list(np.shape(data)), "data": np.ravel(data).tolist()} for n, t, data in tensors]
    answer = invoke(tasks, target, {"inputs": inputs, **fields})
    return {output["name"]: np.reshape(output["data"], output["shape"]).tolist() for output in answer["outputs"]}


def test_classification(tasks: Endpoint) -> None:
    plain = invoke(tasks, "classify", {"inputs": TEXTS})
    assert [sorted(row["label"] for row in rows) for rows in plain["predictions"]] == [sorted(LABELS.values())] * 2
    assert [sum(row["score"] for row in rows) for rows in plain["predictions"]] == pytest.approx([1, 1], abs=1e-5)
    tensors = v2(tasks, "classify", ("text", "BYTES", TEXTS), parameters={"top_k": 1})
    assert tensors["label"] == [[rows[0]["label"]] for rows in plain["predictions"]]


def test_token_classification(tasks: Endpoint) -> None:
    plain = invoke(tasks, "tag", {"inputs": TEXTS})
    for text, rows in zip(TEXTS, plain["predictions"], strict=True):
        assert "".join(text[row["begin"] : row["end"]] for row in rows) == text.replace(" ", "")
        assert all(row["label"] in LABELS.values() and 0 < row["score"] <= 1 for row in rows)
    tensors = v2(tasks, "tag", ("text", "BYTES", TEXTS))
    assert tensors["label"] == [row["label"] for rows in plain["predictions"] for row in rows]
    assert tensors["text_index"] == [index for index, rows in enumerate(plain["predictions"]) for _ in rows]


def test_ranking(tasks: Endpoint) -> None:
    passages = ["your money back", "the order has not arrived", "ok"]
    plain = invoke(tasks, "rank", {"query": "where is my order", "passages": passages})
    assert sorted(row["index"] for row in plain["results"]) == [0, 1, 2]
    scores = [row["score"] for row in plain["results"]]
    assert scores == sorted(scores, reverse=True)
    tensors = v2(tasks, "rank", ("query", "BYTES", ["where is my order"]), ("passages", "BYTES", passages))
    assert [tensors["score"][row["index"]] for row in plain["results"]] == pytest.approx(scores, abs=1e-6)


def test_token_ids_in_place_of_texts(tasks: Endpoint) -> None:
    ids = fast_tokenizer("fairseq_word_piece")(TEXTS[0])["input_ids"]
    vectors = v2(tasks, "embed", ("input_ids", "INT64", [ids]))["embedding"]
    np.testing.assert_allclose(vectors, invoke(tasks, "embed", {"inputs": TEXTS[0]})["embeddings"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "body", "sentence"),
    [
        ("rank", {"inputs": "text"}, "the model has no input 'text' BYTES [1]: it takes query BYTES [1], passages BYTES [-1]"),
        ("classify", {"query": "a", "passages": ["b"]}, "the model has no input 'query'"),
        ("embed", {"inputs": "a", "parameters": {"prompt_name": "x"}}, "no prompt 'x': it has none"),
        ("classify", {"inputs": "a", "parameters": {"topk": 1}}, "no parameter 'topk'"),
    ],
)
def test_what_a_task_does_not_take_is_refused_with_what_it_takes(tasks: Endpoint, target: str, body: dict[str, Any], sentence: str) -> None:
    failure = failure_of(lambda: invoke(tasks, target, body))
    assert (failure.code, failure.status, failure.body["OriginalStatusCode"]) == ("ModelError", 424, 400)
    assert sentence in failure.message


def test_a_model_that_was_trained_for_another_task_is_refused_at_its_first_call(tasks: Endpoint) -> None:
    folder = save_model(Path(tasks.folder) / "other", "bert", Task.EMBEDDING)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, "architectures": ["BertForQuestionAnswering"]}))
    failure = failure_of(lambda: invoke(tasks, "other", {"inputs": "a"}))
    assert "'BertForQuestionAnswering' is not served" in failure.message
