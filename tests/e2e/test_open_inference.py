"""The Open Inference Protocol on our server: what is flatshare's own beside what every server must do (tests/contract/test_v2.py)."""

import gzip
import queue
import signal
import socket
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from flatshare.bench.server import PlainCaller, RunningServer
from flatshare.core.settings import MAX_BODY_BYTES
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import Endpoint, deploy, require_vector, serving, until

pytestmark = pytest.mark.slow
HEALTHY = TENANTS[0]
NAME = f"embeddings/{HEALTHY}"


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[Any]:
    with triton_http.InferenceServerClient(endpoint.server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def rpc(endpoint: Endpoint) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(endpoint.server.grpc_address) as client:
        yield client


def text_input(module: Any, *texts: str, shape: list[int] | None = None) -> list[Any]:
    array = np.array([text.encode() for text in texts], object).reshape(shape or [len(texts)])
    tensor = module.InferInput("text", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return [tensor]


def failure(call: Callable[[], object]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value


def post(server: RunningServer, path: str, body: bytes = b"", headers: str = "") -> tuple[int, Any]:
    with PlainCaller.to_port(server.port) as caller:
        status, answer = caller.request("POST", path, body, headers)
    return status, orjson.loads(answer) if answer else None


# Answers.


def test_every_road_gives_what_numpy_says(endpoint: Endpoint, http: Any, rpc: Any) -> None:
    texts = [TEXT, "hello", "please help i want my money back"]
    for client, module in ((http, triton_http), (rpc, triton_grpc)):
        vectors = client.infer(NAME, text_input(module, *texts)).as_numpy("embedding")
        for vector, text in zip(vectors, texts, strict=True):
            require_vector(vector, endpoint.folder / HEALTHY, text)


def test_a_column_of_texts_is_taken_as_texts(http: Any) -> None:
    assert http.infer(NAME, text_input(triton_http, "hello", TEXT, shape=[2, 1])).as_numpy("embedding").shape == (2, 32)


def test_an_answer_names_the_weights_that_gave_it(endpoint: Endpoint, http: Any, rpc: Any) -> None:
    digest = endpoint.invoke(HEALTHY).digest
    assert http.infer(NAME, text_input(triton_http, TEXT)).get_response()["parameters"]["model_digest"] == digest
    told = rpc.infer(NAME, text_input(triton_grpc, TEXT)).get_response().parameters["model_digest"]
    assert told.string_param == digest
    assert http.get_model_metadata(NAME)["parameters"] == {"task": "embedding", "model_digest": digest}


def test_a_plain_body_is_no_v2_request(endpoint: Endpoint) -> None:
    status, answer = post(endpoint.server, f"/v2/models/{NAME}/infer", b'{"inputs": "hello"}')
    assert status == 400
    assert '"inputs" must be a list of tensors' in answer["error"]


def test_a_name_may_be_percent_encoded(endpoint: Endpoint) -> None:
    with PlainCaller.to_port(endpoint.server.port) as caller:
        status, answer = caller.request("GET", f"/v2/models/{NAME.replace('/', '%2F')}", b"")
    assert status == 200
    assert orjson.loads(answer)["name"] == NAME


def test_only_version_1_exists(http: Any) -> None:
    assert http.infer(NAME, text_input(triton_http, TEXT), model_version="1").get_response()["model_version"] == "1"
    refused = failure(lambda: http.infer(NAME, text_input(triton_http, TEXT), model_version="2"))
    assert (refused.status(), "has no version '2'" in str(refused)) == ("404", True)


# Names.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two endpoints: `both` is in each, `left` and `right` in one."""
    folder = tmp_path_factory.mktemp("two")
    for seed, target in enumerate(("a/both", "a/left", "b/both", "b/right")):
        write_checkpoint(folder / target, seed)
    with serving(folder / "data") as server:
        for name in ("a", "b"):
            deploy(server, name, folder / name)
        yield server


def test_a_bare_name_finds_the_one_endpoint_that_has_it(two: RunningServer) -> None:
    with triton_http.InferenceServerClient(two.url.removeprefix("http://")) as client:
        for name, full in (("left", "a/left"), ("right", "b/right")):
            bare = client.infer(name, text_input(triton_http, TEXT))
            assert bare.get_response()["model_name"] == name
            np.testing.assert_array_equal(
                bare.as_numpy("embedding"), client.infer(full, text_input(triton_http, TEXT)).as_numpy("embedding")
            )
        assert {item["name"] for item in client.get_model_repository_index()} == {"a/left", "b/right"}, "finding a model loads nothing else"


def test_a_bare_name_of_several_endpoints_is_refused_with_the_full_names(two: RunningServer) -> None:
    with triton_http.InferenceServerClient(two.url.removeprefix("http://")) as client:
        refused = failure(lambda: client.infer("both", text_input(triton_http, TEXT)))
        assert refused.status() == "400"
        assert "ambiguous: call it 'a/both', 'b/both'" in str(refused)
        missing = failure(lambda: client.infer("nowhere", text_input(triton_http, TEXT)))
        assert missing.status() == "404"
        assert "endpoints are a, b" in str(missing)


# The repository.


def test_a_model_is_unloaded_and_loaded_by_name(http: Any, rpc: Any) -> None:
    def state() -> str | None:
        return next((item["state"] for item in http.get_model_repository_index() if item["name"] == NAME), None)

    for client in (http, rpc):
        client.load_model(NAME)
        assert state() == "READY"
        client.unload_model(NAME)
        assert state() in {"UNAVAILABLE", None}
        client.unload_model(NAME)
        client.load_model(NAME)
        assert state() == "READY"
    assert failure(lambda: http.load_model("embeddings/nobody")).status() == "404"
    assert failure(lambda: http.load_model(NAME, config='{"backend": "python"}')).status() == "501"


def test_the_index_can_be_asked_for_ready_models_only(endpoint: Endpoint, http: Any) -> None:
    http.infer(NAME, text_input(triton_http, TEXT))
    http.unload_model(NAME)
    _, every = post(endpoint.server, "/v2/repository/index")
    _, ready = post(endpoint.server, "/v2/repository/index", b'{"ready": true}')
    assert (NAME, "UNAVAILABLE") in [(item["name"], item["state"]) for item in every]
    assert NAME not in [item["name"] for item in ready]


# What is not served.


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("r", "/k", 8),
        lambda client: client.unregister_system_shared_memory(),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.unregister_cuda_shared_memory(),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    ],
)
def test_what_is_not_served_says_so(http: Any, rpc: Any, call: Callable[[Any], object]) -> None:
    for client, status in ((http, "501"), (rpc, "StatusCode.UNIMPLEMENTED")):
        refused = failure(lambda client=client: call(client))  # type: ignore[misc]
        assert refused.status() == status
        assert "not supported" in str(refused) or "cannot be set" in str(refused)


def test_a_tensor_in_shared_memory_is_unsupported(http: Any, rpc: Any) -> None:
    for client, module, status in ((http, triton_http, "501"), (rpc, triton_grpc, "StatusCode.UNIMPLEMENTED")):
        tensor = module.InferInput("text", [1], "BYTES")
        tensor.set_shared_memory("region", 64)
        refused = failure(lambda client=client, tensor=tensor: client.infer(NAME, [tensor]))  # type: ignore[misc]
        assert refused.status() == status


def test_the_settings_of_log_and_traces_can_be_read(http: Any, rpc: Any) -> None:
    assert http.get_log_settings()["log_info"] is True
    assert rpc.get_log_settings().settings["log_info"].bool_param
    assert http.get_trace_settings()["trace_level"] == ["OFF"]
    assert list(rpc.get_trace_settings().settings["trace_level"].value) == ["OFF"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/nothing"), ("POST", "/v2/models/x"), ("DELETE", "/v2"), ("GET", "/v2/models/x/infer")]
)
def test_a_path_that_is_no_part_of_the_protocol_is_not_found(endpoint: Endpoint, method: str, path: str) -> None:
    with PlainCaller.to_port(endpoint.server.port) as caller:
        status, answer = caller.request(method, path, b"")
    assert status == 404
    assert path in orjson.loads(answer)["error"]


# Sizes.


def _large_text(size: int) -> list[Any]:
    return text_input(triton_grpc, "a" * size)


def test_a_body_over_the_limit_is_too_large_on_every_road(endpoint: Endpoint, rpc: Any) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a" * MAX_BODY_BYTES]}
    body = orjson.dumps({"inputs": [tensor]})
    status, answer = post(endpoint.server, f"/v2/models/{NAME}/infer", body)
    assert (status, "6291456 bytes" in answer["error"]) == (413, True)
    refused = failure(lambda: rpc.infer(NAME, _large_text(MAX_BODY_BYTES + 100_000)))
    assert refused.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_that_unpacks_to_a_large_one_is_refused(endpoint: Endpoint, encoding: str) -> None:
    bomb = (gzip.compress if encoding == "gzip" else zlib.compress)(b" " * 64 * 2**20)
    status, answer = post(endpoint.server, f"/v2/models/{NAME}/infer", bomb, f"Content-Encoding: {encoding}\r\n")
    assert (status, "unpacks to more" in answer["error"]) == (413, True)


def test_a_small_message_that_unpacks_to_a_large_one_is_refused(rpc: Any) -> None:
    refused = failure(lambda: rpc.infer(NAME, _large_text(64 * 2**20), compression_algorithm="gzip"))
    assert refused.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_large_answer_comes_compressed_if_the_caller_takes_that(endpoint: Endpoint) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [200], "data": [TEXT] * 200}
    with PlainCaller.to_port(endpoint.server.port) as caller:
        message = orjson.dumps({"inputs": [tensor]})
        _, plain = caller.request("POST", f"/v2/models/{NAME}/infer", message)
        _, packed = caller.request("POST", f"/v2/models/{NAME}/infer", message, "Accept-Encoding: br, gzip;q=0.5\r\n")
    assert len(packed) < len(plain) / 2
    assert orjson.loads(gzip.decompress(packed))["outputs"] == orjson.loads(plain)["outputs"]


# Callers who leave, and a server that stops.


def test_a_grpc_caller_who_gives_up_frees_its_place(endpoint: Endpoint) -> None:
    assert endpoint.server.grpc_address is not None
    with grpc.insecure_channel(endpoint.server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=NAME)
        tensor = request.inputs.add(name="text", datatype="BYTES", shape=[4096])
        tensor.contents.bytes_contents.extend([b"please help i want my money back"] * 4096)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, timeout=0.01)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: all(instance["in_flight"] == 0 for instance in endpoint.instances()))
    endpoint.require_right(HEALTHY)


def test_an_answer_that_would_miss_its_deadline_is_504_with_when_to_try_again_and_the_caller_s_own_goes_before_the_settings(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "models/acme", 1)
    (tmp_path / "settings.toml").write_text("[queue]\ndeadline_ms = 0.01\n")
    with serving(tmp_path / "data", options=("--settings", str(tmp_path / "settings.toml"))) as server:
        deploy(server, "e", tmp_path / "models")
        body = orjson.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v2/models/e/acme/infer", body, timeout=30)
        assert (refused.value.code, refused.value.headers["Retry-After"]) == (504, "1")
        assert "deadline" in orjson.loads(refused.value.read())["error"]
        patient = urllib.request.Request(f"{server.url}/v2/models/e/acme/infer", body, {"X-Flatshare-Deadline-Ms": "30000"})
        assert urllib.request.urlopen(patient, timeout=30).status == 200
        assert server.grpc_address is not None
        request = service_pb2.ModelInferRequest(model_name="e/acme", raw_input_contents=[len(TEXT).to_bytes(4, "little") + TEXT.encode()])
        request.inputs.add(name="text", datatype="BYTES", shape=[1])
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ModelInfer(request, timeout=30).model_name == "e/acme"
            for none in (None, 2_000_000):  # some clients say so that they have none
                with pytest.raises(grpc.RpcError) as late:
                    stub.ModelInfer(request, timeout=none)
                code, trailers = late.value.code(), late.value.trailing_metadata()
                assert (code, ("retry-after", "1") in trailers) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
                assert "call again later" in late.value.details()


def test_sigterm_ends_idle_streams_and_connections_and_answers_what_is_under_way(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models/acme", 1)
    with serving(tmp_path / "data") as server:
        deploy(server, "e", tmp_path / "models")
        answers: queue.Queue[Any] = queue.Queue()
        with triton_grpc.InferenceServerClient(server.grpc_address) as idle, triton_grpc.InferenceServerClient(server.grpc_address) as busy:
            idle.start_stream(callback=lambda result, error: answers.put((result, error)))
            idle.async_stream_infer("acme", text_input(triton_grpc, TEXT))
            assert answers.get(timeout=30)[1] is None
            many = text_input(triton_grpc, *["please help i want my money back"] * 4096)
            caller = threading.Thread(target=lambda: answers.put(busy.infer("acme", many)))
            caller.start()
            until(lambda: b"flatshare_requests_in_flight 1.0" in _metrics(server))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 0
            caller.join(timeout=20)
            assert answers.get(timeout=20).as_numpy("embedding").shape == (4096, 32)
            idle.stop_stream()
    assert "drain_time_over" not in (tmp_path / "data/server.log").read_text(), "the idle stream held the server up"


def is_ready(server: RunningServer) -> bool:
    with PlainCaller.to_port(server.port) as caller:
        statuses = [caller.request("GET", path, b"")[0] for path in ("/v2/health/live", "/v2/health/ready", "/ping")]
    assert statuses[0] == 200
    return statuses[1] == 200


def test_a_server_is_ready_once_its_endpoints_are_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models/acme", 1)
    with serving(tmp_path / "data") as server:
        assert is_ready(server), "there is nothing to wait for"
        deploy(server, "e", tmp_path / "models")
        assert is_ready(server)
    with serving(tmp_path / "data") as server:
        until(lambda: is_ready(server))
        with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert client.infer("acme", text_input(triton_http, TEXT)).as_numpy("embedding").shape == (1, 32)


def _metrics(server: RunningServer) -> bytes:
    with PlainCaller.to_port(server.port) as caller:
        return caller.request("GET", "/metrics", b"")[1]


def test_a_port_that_is_in_use_is_named(tmp_path: Path) -> None:
    import subprocess

    from tests.e2e.servers import clean_environment, command

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*command(tmp_path, "1GiB"), "--grpc-port", port],
            capture_output=True,
            check=False,
            timeout=30,
            text=True,
            env=clean_environment(),
        )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--no-grpc" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
