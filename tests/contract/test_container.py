"""The SageMaker multi-model container contract (POST/GET/DELETE /models, invoke, /ping): ours and real Triton answer alike."""

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.contract.packages import config, write_model
from tests.contract.servers import ContainerServer, tensor

pytestmark = pytest.mark.slow
_numbers = itertools.count()
ONE = [tensor("A", "FP32", [1, 3], [1, 2, 3])]


@pytest.fixture
def key() -> str:
    return f"m{next(_numbers):031x}"


@pytest.fixture
def loaded(server: ContainerServer, key: str, tmp_path: Path) -> Iterator[str]:
    """A model that doubles what it is given."""
    assert server.load(key, write_model(tmp_path / key)).status == 200
    yield key
    server.unload(key)


def test_a_server_pings(server: ContainerServer) -> None:
    assert server.call("GET", "/ping").status == 200


def test_a_model_that_was_never_loaded_is_not_found(server: ContainerServer, key: str) -> None:
    assert server.call("GET", f"/models/{key}").status == 404
    assert server.infer(key, ONE).status == 404
    assert server.unload(key).status == 404


def test_what_was_loaded_is_described_listed_and_answers(server: ContainerServer, loaded: str) -> None:
    described = server.call("GET", f"/models/{loaded}")
    assert (described.status, described.json["modelName"]) == (200, loaded)
    assert described.json["modelUrl"]
    assert loaded in [model.get("modelName") for model in _listed(server)]
    assert server.infer(loaded, ONE).output("B") == [2, 4, 6]


def test_loading_again_is_a_conflict(server: ContainerServer, loaded: str, tmp_path: Path) -> None:
    assert server.load(loaded, tmp_path / loaded).status == 409
    assert server.infer(loaded, ONE).status == 200


def test_what_was_unloaded_has_gone_when_the_answer_comes_and_can_be_loaded_again(
    server: ContainerServer, key: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / key)
    server.load(key, folder)
    assert server.unload(key).status == 200
    assert server.call("GET", f"/models/{key}").status == 404
    assert server.infer(key, ONE).status == 404
    assert server.unload(key).status == 404
    assert server.load(key, folder).status == 200
    assert server.infer(key, ONE).status == 200
    server.unload(key)


def test_an_address_where_nothing_lies_is_refused_and_leaves_nothing(server: ContainerServer, key: str, tmp_path: Path) -> None:
    assert 400 <= server.load(key, tmp_path / "absent").status < 500
    assert server.call("GET", f"/models/{key}").status == 404


def test_an_answer_names_the_target_model(server: ContainerServer, key: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / key)
    assert server.load(key, folder, target=f"acme/{key}.tar.gz").status == 200
    answer = server.infer(key, ONE, target=f"acme/{key}.tar.gz", id="seven")
    assert (answer.status, answer.json["model_name"], answer.json["id"]) == (200, f"acme/{key}.tar.gz", "seven")
    assert server.unload(key, target=f"acme/{key}.tar.gz").status == 200


def test_custom_attributes_do_no_harm(server: ContainerServer, loaded: str) -> None:
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "trace=1, n=2"}
    assert server.call("POST", f"/models/{loaded}/invoke", {"inputs": ONE}, headers).output("B") == [2, 4, 6]


def test_binary_tensors_are_taken_and_given(server: ContainerServer, loaded: str) -> None:
    values = np.array([[1.5, -2, 3]], np.float32)
    head = json.dumps(
        {
            "inputs": [{"name": "A", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": values.nbytes}}],
            "outputs": [{"name": "B", "parameters": {"binary_data": True}}],
        }
    ).encode()
    kind = f"application/vnd.sagemaker-triton.binary+json;json-header-size={len(head)}"
    answer = server.call("POST", f"/models/{loaded}/invoke", head + values.tobytes(), {"Content-Type": kind})
    assert answer.status == 200
    prefix, _, size = answer.headers["content-type"].partition("json-header-size=")
    assert prefix.startswith("application/vnd.sagemaker-triton.binary+json")
    assert answer.body[int(size) :] == (values * 2).tobytes()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"inputs": [tensor("X", "FP32", [1, 3], [1, 2, 3])]}, "X"),
        ({"inputs": [tensor("A", "INT32", [1, 3], [1, 2, 3])]}, "INT32"),
        ({"inputs": [tensor("A", "FP32", [3], [1, 2, 3])]}, "A"),
        ({"inputs": [tensor("A", "FP32", [5, 1], [1, 2, 3, 4, 5])]}, "batch-size must be <= 4"),
        ({"inputs": [tensor("A", "FP32", [1, 3], [1, 2])]}, "shape"),
        ({"inputs": []}, "input"),
        ({}, "inputs"),
        (b"no json", ""),
    ],
)
def test_a_wrong_request_is_400_with_a_sentence_and_the_model_goes_on(
    server: ContainerServer, loaded: str, body: object, says: str
) -> None:
    answer = server.call("POST", f"/models/{loaded}/invoke", body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert says in answer.error
    assert server.infer(loaded, ONE).output("B") == [2, 4, 6]


@pytest.mark.parametrize("path", ["/nonsense", "/models/a/b/c"])
def test_what_is_no_part_of_the_contract_is_400(server: ContainerServer, path: str) -> None:
    assert server.call("GET", path).status == 400


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ValueError('no luck at import')", "no luck at import"),
        ("class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('no luck at start')", "no luck at start"),
        ("class Other: pass", "TritonPythonModel"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing(
    server: ContainerServer, key: str, tmp_path: Path, code: str, says: str
) -> None:
    answer = server.load(key, write_model(tmp_path / key, code))
    assert answer.status == 400
    if server.name == "flatshare" or says != "SyntaxError":  # Triton's sentence has the words of the parser only
        assert says in answer.error
    assert server.call("GET", f"/models/{key}").status == 404


_EXECUTE = """
    import triton_python_backend_utils as pb_utils
    class TritonPythonModel:
        def execute(self, requests):
            {body}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no luck today')", "no luck today"),
        ("return [pb_utils.InferenceResponse(error=pb_utils.TritonError('told you'))]", "told you"),
        ("return []", ""),
        ("return 7", ""),
    ],
)
def test_a_model_that_fails_to_answer_is_400_with_its_sentence(
    server: ContainerServer, key: str, tmp_path: Path, body: str, says: str
) -> None:
    assert server.load(key, write_model(tmp_path / key, _EXECUTE.format(body=body))).status == 200
    answer = server.infer(key, ONE)
    assert answer.status == 400
    assert says in answer.error
    assert server.unload(key).status == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("backend: 7", ""),
        ('backend: "nobody"', "nobody"),
        (config(more='backend: "python" max_batch_size: -1'), ""),
        (config(inputs="A TYPE_FP32"), "dims"),
        (config(more='backend: "python" max_batch_size: 4 version_policy { specific { versions: [7] } }'), ""),
    ],
)
def test_a_wrong_config_is_refused_with_a_sentence(server: ContainerServer, key: str, tmp_path: Path, settings: str, says: str) -> None:
    answer = server.load(key, write_model(tmp_path / key, settings=settings))
    assert answer.status == 400
    assert says in answer.error


METERED = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            kinds = pb_utils.MetricFamily
            self.family = kinds(name="took_" + args["model_name"][:8], description="Seconds", kind=kinds.HISTOGRAM)
            self.counted = kinds(name="counted_" + args["model_name"][:8], description="Count", kind=kinds.COUNTER)
            self.took = self.family.Metric(labels={"kind": "times"}, buckets=[0.5, 1.0, 2.5])

        def execute(self, requests):
            for value in (0.5, 0.6, 7, -1):
                self.took.observe(value)
            wrong = (
                lambda: self.family.Metric(labels={"kind": "none"}), lambda: self.family.Metric(buckets=(1.0, 2.0)),
                lambda: self.counted.Metric(buckets=[1.0]), lambda: self.family.Metric(labels=[("kind", "list")], buckets=[1.0]),
            )
            found = np.array([[self.refused(call) for call in wrong]], np.float32)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", found)]) for _ in requests]

        def refused(self, call):
            try:
                call()
            except pb_utils.TritonModelException:
                return 1
            return 0
"""


def test_histograms_observe_and_are_made_with_buckets(server: ContainerServer, key: str, tmp_path: Path) -> None:
    assert server.load(key, write_model(tmp_path / key, METERED)).status == 200
    assert server.infer(key, ONE).output("B") == [1] * 4
    server.unload(key)


def test_texts_go_in_and_out(server: ContainerServer, key: str, tmp_path: Path) -> None:
    code = _EXECUTE.format(body="return [pb_utils.InferenceResponse([pb_utils.Tensor('B', r.inputs()[0].as_numpy())]) for r in requests]")
    settings = config(inputs="A TYPE_STRING -1", outputs="B TYPE_STRING -1")
    server.load(key, write_model(tmp_path / key, code, settings))
    answer = server.infer(key, [tensor("A", "BYTES", [1, 3], ["", "été", "a\nb"])])
    assert answer.output("B") == ["", "été", "a\nb"]
    raw = b"".join(struct.pack("<I", len(item)) + item for item in (b"\xff\x00", b""))
    head = json.dumps(
        {
            "inputs": [{"name": "A", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "B", "parameters": {"binary_data": True}}],
        }
    ).encode()
    kind = f"application/vnd.sagemaker-triton.binary+json;json-header-size={len(head)}"
    assert server.call("POST", f"/models/{key}/invoke", head + raw, {"Content-Type": kind}).body.endswith(raw)
    server.unload(key)


def _listed(server: ContainerServer) -> list[dict[str, str]]:
    """All pages."""
    models: list[dict[str, str]] = []
    query = ""
    while True:
        page = server.call("GET", f"/models{query}").json
        models += page["models"]
        if "nextPageToken" not in page:
            return models
        query = f"?next_page_token={page['nextPageToken']}"
