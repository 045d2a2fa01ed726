"""Models that write, behind a real server, called by boto3 and curl."""

import http.client
import queue
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
from botocore.exceptions import ClientError

from flatshare.bench.server import RunningServer
from flatshare.client.stream import invoke_with_response_stream, lines_of
from tests.e2e.servers import Endpoint, deploy, until
from tests.writers import TEMPLATE, llama, save, t5

TEXT = "the order to pay you"
FOR_EVER = {"max_tokens": 450, "min_tokens": 450}


@pytest.fixture(scope="session")
def writing(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    folder = tmp_path_factory.mktemp("writers")
    save(t5(1), folder / "acme" / "reply")
    save(llama(1), folder / "acme" / "chat", tokenizer_config={"chat_template": TEMPLATE, "bos_token": "!"})
    broken = save(t5(2), folder / "broken")
    shutil.copyfile(folder / "acme" / "chat" / "tokenizer.json", broken / "tokenizer.json")
    return deploy(server, "drafts", folder)


def call(endpoint: Endpoint, target: str, **body: Any) -> dict[str, Any]:
    reply = endpoint.server.runtime.invoke_endpoint(
        EndpointName=endpoint.name, TargetModel=target, ContentType="application/json", Body=orjson.dumps(body)
    )
    answer: dict[str, Any] = orjson.loads(reply["Body"].read())
    return answer


def stream(endpoint: Endpoint, target: str, **body: Any) -> list[dict[str, Any]]:
    return list(lines_of(invoke_with_response_stream(endpoint.server.runtime, endpoint.name, target, orjson.dumps(body))))


def statistics(endpoint: Endpoint) -> dict[str, Any]:
    [instance] = endpoint.instances()
    engine: dict[str, Any] = instance["engine"]
    return engine


@pytest.mark.parametrize("target", ["acme/reply", "acme/chat"])
def test_the_parts_that_boto3_reads_are_the_text_that_it_gets_whole(writing: Endpoint, target: str) -> None:
    whole = call(writing, target, inputs=TEXT, parameters={"max_tokens": 20, "details": True})
    *pieces, last = stream(writing, target, inputs=TEXT, parameters={"max_tokens": 20})
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == whole["texts"][0] == last["done"]["texts"][0]["text"]
    assert last["done"]["texts"][0]["finish_reason"] == whole["finish_reasons"][0]
    assert last["done"]["model"]["name"] == target
    assert whole["logprobs"][0] < 0


def test_curl_reads_server_sent_events(writing: Endpoint) -> None:
    url = f"{writing.server.url}/endpoints/{writing.name}/invocations"
    headers = ["-H", "content-type: application/json", "-H", "x-amzn-sagemaker-target-model: acme/reply"]
    body = orjson.dumps({"inputs": TEXT, "stream": True, "parameters": {"max_tokens": 12}}).decode()
    told = subprocess.run(["curl", "-sS", "-N", "-i", *headers, "-d", body, url], check=True, capture_output=True, text=True).stdout
    head, _, events = told.partition("\r\n\r\n" if "\r\n\r\n" in told else "\n\n")
    assert "text/event-stream" in head
    found = [orjson.loads(event.removeprefix("data: ")) for event in events.split("\n\n") if event.strip()]
    assert "".join(event["text"] for event in found[:-1]) == found[-1]["done"]["texts"][0]["text"]


def test_v2_and_a_conversation_are_answered(writing: Endpoint) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    answer = call(writing, "acme/reply", inputs=[tensor], parameters={"max_tokens": 10})
    [texts] = [output["data"] for output in answer["outputs"] if output["name"] == "text"]
    assert texts == call(writing, "acme/reply", inputs=TEXT, parameters={"max_tokens": 10})["texts"]
    talk = call(writing, "acme/chat", messages=[{"role": "user", "content": "help"}], parameters={"max_tokens": 10, "stop": ["zz", "q"]})
    assert talk["texts"] == call(writing, "acme/chat", inputs="!user: help\nanswer: ", parameters={"max_tokens": 10, "stop": "q"})["texts"]


def test_tritonclient_reads_what_is_written_as_it_comes(writing: Endpoint) -> None:
    whole = call(writing, "acme/reply", inputs=TEXT, parameters={"max_tokens": 12})["texts"][0]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    prompt = triton_grpc.InferInput("text", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([TEXT.encode()], object))
    with triton_grpc.InferenceServerClient(writing.server.grpc_address) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer(f"{writing.name}/acme/reply", [prompt], request_id="one", parameters={"max_tokens": 12})
        client.async_stream_infer(f"{writing.name}/acme/reply", [prompt], request_id="two", parameters={"stop": ""})
        pieces, last = [], None
        while last is None:
            result, error = answers.get(timeout=30)
            assert error is None
            response = result.get_response()
            assert response.id == "one"
            if response.parameters["triton_final_response"].bool_param:
                last = result
            else:
                pieces.append(result.as_numpy("text")[0].decode())
        assert len(pieces) > 2
        assert "".join(pieces) == whole == last.as_numpy("complete_text")[0].decode()
        assert "an empty one would stop at once" in str(answers.get(timeout=30)[1])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a prompt that is too long": ("the order " * 400, {}, "more than the model's 512 positions"),
    "more tokens than positions": (TEXT, {"max_tokens": 513}, "more than the model's 512 positions"),
    "an empty stop string": (TEXT, {"stop": ["a", ""]}, "an empty one would stop at once"),
    "too many beams": (TEXT, {"beams": 9}, "'beams' must be an integer from 1 to 8"),
    "too many texts": (TEXT, {"n": 9, "temperature": 1.0}, "'n' must be an integer from 1 to 8"),
    "more texts than beams": (TEXT, {"beams": 2, "n": 3}, "2 beams cannot give 3 texts"),
    "beams by chance": (TEXT, {"beams": 2, "temperature": 0.5}, "beams search without chance"),
}


@pytest.mark.parametrize(("text", "parameters", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_written_is_refused_whole_and_streamed(writing: Endpoint, text: str, parameters: dict[str, Any], says: str) -> None:
    for road in (call, stream):
        with pytest.raises(ClientError) as refused:
            road(writing, "acme/chat", inputs=text, parameters=parameters)
        response: Any = refused.value.response
        assert response["OriginalStatusCode"] == 400
        assert says in response["OriginalMessage"]
    assert statistics(writing)["generation_jobs"] == 0


def test_a_caller_who_stops_reading_holds_no_rows(writing: Endpoint) -> None:
    """Nobody waits for it: what it does not fetch is bounded by the tokens it asked for."""
    body = orjson.dumps({"inputs": TEXT, "stream": True, "parameters": FOR_EVER | {"n": 8, "temperature": 1.0}})
    head = f"POST /endpoints/{writing.name}/invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\nx-amzn-sagemaker-target-model: acme/chat\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", writing.server.port))
        steps = statistics(writing)["generation_steps"]
        deaf.sendall(head.encode() + body)
        until(lambda: statistics(writing)["generation_steps"] - steps >= 449)
        until(lambda: statistics(writing)["generation_jobs"] == 0)
        assert statistics(writing)["generation_row_bytes"] == 0
        assert call(writing, "acme/chat", inputs=TEXT, parameters={"max_tokens": 2})["tokens"] == [2]


def test_an_error_before_the_first_part_is_an_ordinary_error(writing: Endpoint) -> None:
    with pytest.raises(ClientError) as refused:
        stream(writing, "acme/reply", inputs=TEXT, parameters={"stop": ""})
    response: Any = refused.value.response
    assert response["Error"]["Code"] == "ModelError"
    assert "an empty one would stop at once" in response["OriginalMessage"]


def test_a_tokenizer_of_another_model_is_refused(writing: Endpoint) -> None:
    with pytest.raises(ClientError, match="tokenizer and weights do not belong together"):
        call(writing, "broken", inputs=TEXT)


def test_an_encoder_answers_the_streaming_call_with_one_part(endpoint: Endpoint) -> None:
    parts = list(invoke_with_response_stream(endpoint.server.runtime, endpoint.name, "tenant-0/query", b'{"inputs": "hello"}'))
    assert len(parts) == 1
    assert "embeddings" in orjson.loads(parts[0])


def test_a_caller_who_leaves_in_the_middle_stops_the_writing(writing: Endpoint) -> None:
    call(writing, "acme/chat", inputs=TEXT, parameters={"max_tokens": 1})
    before = statistics(writing)["generation_steps"]
    body = orjson.dumps({"inputs": TEXT, "stream": True, "parameters": FOR_EVER})
    connection = http.client.HTTPConnection("127.0.0.1", writing.server.port)
    headers = {"content-type": "application/json", "x-amzn-sagemaker-target-model": "acme/chat"}
    connection.request("POST", f"/endpoints/{writing.name}/invocations", body, headers)
    reply = connection.getresponse()
    assert reply.read(6) == b"data: "
    assert connection.sock is not None or reply.fp is not None
    reply.close()
    connection.close()
    until(lambda: statistics(writing)["generation_jobs"] == 0)
    assert statistics(writing)["generation_row_bytes"] == 0
    assert statistics(writing)["generation_steps"] - before < 450


def test_a_caller_who_speaks_http_1_0_gets_the_parts_until_the_connection_ends(writing: Endpoint) -> None:
    body = orjson.dumps({"inputs": TEXT, "stream": True, "parameters": {"max_tokens": 5}})
    head = f"POST /endpoints/{writing.name}/invocations HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", writing.server.port)) as raw:
        raw.sendall(f"{head}x-amzn-sagemaker-target-model: acme/chat\r\n\r\n".encode() + body)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    assert b"chunked" not in received
    assert b'"done"' in received


def test_the_command_line_prints_what_comes(writing: Endpoint, tmp_path: Path) -> None:
    command = ["flatshare", "invoke", writing.name, "acme/reply", "--stream", "--url", writing.server.url, TEXT]
    told = subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, text=True).stdout
    assert told.rstrip("\n") == call(writing, "acme/reply", inputs=TEXT)["texts"][0].rstrip("\n")
