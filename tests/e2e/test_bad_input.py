"""Whatever a caller or a checkpoint gets wrong: the contract's code, a sentence that says what is wrong, and a server that goes on."""

import gzip
import io
import socket
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest

from flatshare.bench.server import PlainCaller
from flatshare.core.settings import MAX_BODY_BYTES
from tests.e2e.checkpoints import INTERMEDIATE, config, random_tensors, safetensors, write_checkpoint, write_safetensors
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import Endpoint, Failure, until

pytestmark = pytest.mark.slow
HEALTHY = TENANTS[0]
_GOOD = b'{"inputs": "hello"}'


@pytest.fixture(autouse=True)
def _a_healthy_model_answers_before_and_after(endpoint: Endpoint) -> Iterator[None]:
    endpoint.require_right(HEALTHY)
    [before] = endpoint.instances()
    yield
    assert not endpoint.require_right(HEALTHY).is_cold
    [after] = endpoint.instances()
    assert after["instance"] == before["instance"], "the instance was replaced"
    assert after["in_flight"] == 0


# What is wrong with the call's address. The platform answers these itself: 400 ValidationError.

ADDRESSES: dict[str, tuple[dict[str, str | None], str]] = {
    "an unknown endpoint": ({"EndpointName": "nobody"}, "Endpoint nobody of account 000000000000 not found."),
    "an unknown target": ({"TargetModel": "tenant-0/nobody"}, "tenant-0/nobody"),
    "a target that is only a prefix of others' names": ({"TargetModel": "tenant-0/quer"}, "Nothing lies at"),
    "a target above the prefix": ({"TargetModel": "../x"}, "without '..'"),
    "a target that goes up and comes back": ({"TargetModel": "tenant-0/../tenant-0/query"}, "without '..'"),
    "an absolute path": ({"TargetModel": "/etc"}, "Nothing lies at"),
    "an absolute address": ({"TargetModel": "file:///etc/passwd"}, "without a scheme"),
    "an address of another store": ({"TargetModel": "s3://bucket/key"}, "without a scheme"),
    "a slash": ({"TargetModel": "/"}, "plain path"),
    "a backslash": ({"TargetModel": "tenant-0\\query"}, "plain path"),
    "a target that begins with a space": ({"TargetModel": "\u00a0x"}, "printable characters"),
    "no target": ({"TargetModel": None}, "missing a target model header"),
    "an unknown variant": ({"TargetVariant": "nobody"}, "it has AllTraffic"),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_an_address_that_leads_nowhere_is_a_validation_error(endpoint: Endpoint, case: str) -> None:
    members, sentence = ADDRESSES[case]
    failure = endpoint.failure(**({"TargetModel": HEALTHY} | members))
    assert (failure.code, failure.status) == ("ValidationError", 400)
    assert sentence in failure.message


PLAIN_TARGETS = {
    "a tab in the middle": (b"a\tb", "printable"),
    "too long a name": (b"x" * 1025, "1 to 1024"),
    "nothing": (b"", "missing a target model header"),
    "bytes that are not UTF-8": (b"\xff\xfe", "Nothing lies at"),
}


@pytest.mark.parametrize("case", PLAIN_TARGETS)
def test_a_target_header_that_boto3_would_not_send_is_a_validation_error(endpoint: Endpoint, case: str) -> None:
    target, sentence = PLAIN_TARGETS[case]
    status, answer = _plain(endpoint, f"X-Amzn-SageMaker-Target-Model: {target.decode('latin-1')}\r\n".encode("latin-1"))
    assert status == 400
    assert sentence in orjson.loads(answer)["Message"]
    assert orjson.loads(answer)["ErrorCode"] == "ValidationError"


@pytest.mark.parametrize("name", [b"x\x01y", b"x\x7fy"])
def test_control_characters_in_a_header_are_refused(endpoint: Endpoint, name: bytes) -> None:
    status, _ = _plain(endpoint, b"X-Amzn-SageMaker-Target-Model: " + name + b"\r\n")
    assert status == 400


def _plain(endpoint: Endpoint, header: bytes, body: bytes = _GOOD, path: str = "") -> tuple[int, bytes]:
    """InvokeEndpoint byte by byte."""
    with PlainCaller.to_port(endpoint.server.port) as caller:
        head = (
            f"POST {path or f'/endpoints/{endpoint.name}/invocations'} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
        )
        return caller.exchange(head + header + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


def test_a_path_that_is_not_served_says_what_is(endpoint: Endpoint) -> None:
    status, answer = _plain(endpoint, b"", path="/nowhere")
    assert status == 404
    assert "/nowhere is not served here" in orjson.loads(answer)["Message"]


@pytest.mark.parametrize("garbage", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST / HTTP/1.1\r\nContent-Length: minus\r\n\r\n"])
def test_what_is_not_http_does_not_disturb_the_others(endpoint: Endpoint, garbage: bytes) -> None:
    with PlainCaller.to_port(endpoint.server.port) as caller:
        try:
            status, _ = caller.exchange(garbage)
        except ConnectionError:
            return
        assert status == 400


def test_a_body_of_six_mebibytes_is_accepted_and_one_byte_more_is_refused(endpoint: Endpoint) -> None:
    frame = len(orjson.dumps({"inputs": ""}))
    largest = orjson.dumps({"inputs": "a" * (MAX_BODY_BYTES - frame)})
    answer = endpoint.send(TargetModel=HEALTHY, ContentType="application/json", Body=largest)
    assert answer.body["truncated"] == [0], "only its beginning is read, and the answer says so"
    failure = endpoint.failure(TargetModel=HEALTHY, Body=largest + b" ")
    assert (failure.code, failure.status) == ("ValidationError", 400)
    assert "6291456 bytes" in failure.message


def test_a_body_too_large_is_refused_too_if_it_comes_in_chunks_without_a_length(endpoint: Endpoint) -> None:
    head = f"POST /endpoints/{endpoint.name}/invocations HTTP/1.1\r\nHost: x\r\nX-Amzn-SageMaker-Target-Model: {HEALTHY}\r\n"
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    with PlainCaller.to_port(endpoint.server.port) as caller:
        status, answer = caller.exchange(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 97 + b"0\r\n\r\n")
    assert status == 400
    assert "larger than the 6291456 bytes" in orjson.loads(answer)["Message"]


def test_callers_that_hang_up_leave_nothing_behind(endpoint: Endpoint) -> None:
    body = orjson.dumps({"inputs": ["hello"] * 500})
    head = f"POST /endpoints/{endpoint.name}/invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    message = f"{head}X-Amzn-SageMaker-Target-Model: {HEALTHY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    for sent in (len(message), len(message) - 1, len(head)) * 5:
        with socket.create_connection(("127.0.0.1", endpoint.server.port)) as caller:
            caller.sendall(message[:sent])
    until(lambda: all(instance["in_flight"] == 0 for instance in endpoint.instances()))
    until(lambda: all(model["leases"] == 0 for instance in endpoint.instances() for model in instance["models"]))


# What is wrong with the body. The model answers these: 424 ModelError, with its own status and words inside.


def _tensor(**fields: object) -> bytes:
    return orjson.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"], **fields}]})


BODIES = {
    "nothing": (b"", "not valid JSON"),
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "not valid JSON"),
    "half a surrogate pair": (b'{"inputs": "\\ud800"}', "not valid JSON"),
    "a list": (b'["hello"]', "must be a JSON object"),
    "without inputs": (b'{"instances": ["hello"]}', 'an object with "inputs"'),
    "inputs that are null": (b'{"inputs": null}', "a list of at least one text"),
    "inputs that are a number": (b'{"inputs": 1}', "a list of at least one text"),
    "inputs that are empty": (b'{"inputs": []}', "at least one text"),
    "a number among the texts": (b'{"inputs": ["hello", 1]}', "a list of at least one text"),
    "5,000 texts": (orjson.dumps({"inputs": ["hello"] * 5000}), "5000 texts in one call: at most 4096 are accepted"),
    "5,000 texts in a tensor": (_tensor(shape=[5000], data=["hello"] * 5000), "5000 texts in one call: at most 4096 are accepted"),
    "another datatype": (_tensor(datatype="FP32", data=[1.0]), "no input 'text' FP32 [1]: it takes text BYTES [-1]"),
    "BYTES that are numbers": (_tensor(data=[1]), "its data must be texts"),
    "a shape that is not the data's": (_tensor(shape=[3]), "has 1 elements, its shape [3] says 3"),
    "a negative shape": (_tensor(shape=[-1]), "needs a shape"),
    "an enormous shape": (_tensor(shape=[2**62, 2**62]), "needs a shape"),
    "a shape that is no list": (_tensor(shape="1"), "needs a shape"),
    "a tensor without data": (_tensor(data=None), "needs data"),
    "a tensor without a name": (_tensor(name=None), "needs a name"),
    "an output that it does not have": (
        orjson.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "outputs": [{"name": "logits"}]}),
        "no output 'logits': it gives embedding FP32",
    ),
    "two tensors": (
        orjson.dumps({"inputs": [{"name": n, "datatype": "BYTES", "shape": [1], "data": ["a"]} for n in ("text", "b")]}),
        "no input 'b' BYTES [1]",
    ),
    "a tensor beside a text": (b'{"inputs": [{"name": "a", "datatype": "BYTES", "shape": [1], "data": ["a"]}, "b"]}', "a list of tensors"),
    "very deep": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_cannot_be_understood_is_the_callers_error(endpoint: Endpoint, case: str) -> None:
    body, sentence = BODIES[case]
    _require_model_error(endpoint.failure(TargetModel=HEALTHY, Body=body), 400, sentence)


@pytest.mark.parametrize("content_type", ["application/x-npy", "image/png", "text/csv"])
def test_another_content_type_is_the_callers_error(endpoint: Endpoint, content_type: str) -> None:
    failure = endpoint.failure(TargetModel=HEALTHY, ContentType=content_type)
    _require_model_error(failure, 400, f"content type '{content_type}' is not served here")


def test_plain_text_that_is_not_utf_8_is_the_callers_error(endpoint: Endpoint) -> None:
    _require_model_error(endpoint.failure(TargetModel=HEALTHY, ContentType="text/plain", Body=b"\xff"), 400, "not UTF-8")


def _require_model_error(failure: Failure, status: int, sentence: str) -> None:
    assert (failure.code, failure.status) == ("ModelError", 424), failure.message
    assert failure.body["OriginalStatusCode"] == status, failure.message
    assert sentence in failure.body["OriginalMessage"]
    side, code = ("client", "CLIENT_ERROR_FROM_MODEL") if status < 500 else ("server", "INTERNAL_FAILURE_FROM_MODEL")
    assert failure.message.startswith(f"Received {side} error ({status}) from primary with message ")
    assert failure.body["Error"].get("Code") == "ModelError"
    assert failure.body.get("ErrorCode", code) == code
    assert failure.body["LogStreamArn"].startswith("arn:aws:logs:us-east-1:000000000000:log-group:")


# What is wrong with the artifact: each of these breaks one thing in a good checkpoint, or writes a bad archive.


@dataclass(frozen=True, slots=True)
class Broken:
    """How to make the artifact, the end of its name, and the words that must appear."""

    make: Callable[[Path], None]
    sentence: str
    suffix: str = ""


def _in_checkpoint(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        change(write_checkpoint(place, 500))

    return make


def _edited(name: str, **fields: object) -> Callable[[Path], None]:
    def change(checkpoint: Path) -> None:
        path = checkpoint / name
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **fields}))

    return _in_checkpoint(change)


def _weights(content: bytes) -> Callable[[Path], None]:
    return _in_checkpoint(lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(content))


def _cut_short(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _lying(change: Callable[[dict[str, dict[str, object]]], None]) -> Callable[[Path], None]:
    """A header that does not describe what follows it."""

    def edit(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = orjson.loads(content[8:end])
        change(header)
        path.write_bytes(safetensors(header, content[end:]))

    return _in_checkpoint(edit)


def _overlap(header: dict[str, dict[str, object]]) -> None:
    header["embeddings.position_embeddings.weight"]["data_offsets"] = [0, 64 * 32 * 4]


def _beyond(header: dict[str, dict[str, object]]) -> None:
    header["embeddings.word_embeddings.weight"]["data_offsets"] = [2**40, 2**40 + 64 * 32 * 4]


def _without(name: str) -> Callable[[Path], None]:
    return _in_checkpoint(lambda checkpoint: (checkpoint / name).unlink())


def _without_a_tensor(checkpoint: Path) -> None:
    tensors = random_tensors(500)
    del tensors["encoder.layer.1.output.dense.weight"]
    write_safetensors(checkpoint / "model.safetensors", tensors)


def _out_of_vocabulary(checkpoint: Path) -> None:
    write_safetensors(checkpoint / "model.safetensors", random_tensors(500, rows=8))
    (checkpoint / "config.json").write_bytes(orjson.dumps(config(rows=8)))


def _file(content: bytes) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.write_bytes(content)

    return make


def _tar(*members: tarfile.TarInfo, content: bytes = b"hello") -> Callable[[Path], None]:
    def make(place: Path) -> None:
        with tarfile.open(place, "w") as tar:
            for member in members:
                member.size = len(content) if member.isreg() else 0
                tar.addfile(member, io.BytesIO(content))

    return make


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _bomb(place: Path) -> None:
    """A quarter of a gigabyte of zeros in 260 kB."""
    with gzip.open(place, "wb", compresslevel=9) as packed:
        member = _member("model.safetensors")
        member.size = 2**28
        packed.write(member.tobuf())
        for _ in range(2**28 // 2**24):
            packed.write(bytes(2**24))


BROKEN = {
    "an empty folder": Broken(lambda place: place.mkdir(), "Nothing lies at"),
    "no config": Broken(_without("config.json"), "config.json is missing"),
    "no tokenizer": Broken(_without("tokenizer.json"), "tokenizer.json is missing"),
    "no weights": Broken(_without("model.safetensors"), "model.safetensors is missing"),
    "no pooling config": Broken(_without("1_Pooling/config.json"), "1_Pooling/config.json is missing"),
    "a family that is no name": Broken(_edited("config.json", model_type=7), "model_type is 7"),
    "a config that is not JSON": Broken(_in_checkpoint(lambda c: (c / "config.json").write_text("{")), "config.json is not valid JSON"),
    "a config that is a list": Broken(_in_checkpoint(lambda c: (c / "config.json").write_text("[]")), "config.json is not a JSON object"),
    "a negative size": Broken(_edited("config.json", hidden_size=-32), "hidden_size must be an integer"),
    "an enormous size": Broken(_edited("config.json", hidden_size=10**12), "hidden_size must be an integer"),
    "weights of other sizes than the config's": Broken(
        _edited("config.json", intermediate_size=INTERMEDIATE * 2), "do not belong together"
    ),
    "more layers than there are weights": Broken(_edited("config.json", num_hidden_layers=3), "lacks the tensor 'encoder.layer.2"),
    "a tensor too few": Broken(_in_checkpoint(_without_a_tensor), "lacks the tensor 'encoder.layer.1.output.dense.weight'"),
    "a vocabulary beyond the embeddings": Broken(_in_checkpoint(_out_of_vocabulary), "tokenizer and weights do not belong together"),
    "a tokenizer that is not one": Broken(
        _in_checkpoint(lambda c: (c / "tokenizer.json").write_text("{}")), "tokenizer.json cannot be used"
    ),
    "truncated weights": Broken(_in_checkpoint(_cut_short), "is truncated"),
    "overlapping offsets": Broken(_lying(_overlap), "overlaps its neighbour"),
    "offsets out of range": Broken(_lying(_beyond), "model.safetensors"),
    "weights that are garbage": Broken(_weights(np.random.default_rng(0).bytes(5000)), "truncated or not safetensors"),
    "weights that are empty": Broken(_weights(b""), "has 0 bytes"),
    "a header of 2**63 bytes": Broken(_weights((2**63).to_bytes(8, "little") + b"{}"), "claims a header of"),
    "a tar that escapes its folder": Broken(_tar(_member("../escaped")), "leads out of its folder", ".tar"),
    "a tar with an absolute path": Broken(_tar(_member("/tmp/flatshare-escaped")), "leads out of its folder", ".tar"),
    "a tar with a symlink": Broken(_tar(_member("config.json", tarfile.SYMTYPE, "/etc/passwd")), "a link, a device", ".tar"),
    "a tar with a hard link": Broken(_tar(_member("config.json", tarfile.LNKTYPE, "/etc/passwd")), "a link, a device", ".tar"),
    "a tar with a device": Broken(_tar(_member("config.json", tarfile.CHRTYPE)), "a link, a device", ".tar"),
    "a tar with a pipe": Broken(_tar(_member("config.json", tarfile.FIFOTYPE)), "a link, a device", ".tar"),
    "a tar without a checkpoint": Broken(_tar(_member("hello.txt")), "config.json is missing", ".tar"),
    "a gzip bomb": Broken(_bomb, "as only a bomb does", ".tar.gz"),
    "garbage named .tar": Broken(_file(b"x" * 2000), "damaged or not a tar", ".tar"),
    "garbage named .tar.gz": Broken(_file(b"x" * 2000), "damaged or not of the kind", ".tar.gz"),
    "garbage named .tar.zst": Broken(_file(b"x" * 2000), "damaged or not of the kind", ".tar.zst"),
    "an empty .tar.zst": Broken(_file(b""), "cut short", ".tar.zst"),
    "a lone file": Broken(_file(b"hello"), "", ".bin"),
}
_NOT_THERE = {"an empty folder"}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_artifact_is_refused_each_time_with_what_is_wrong_with_it(endpoint: Endpoint, case: str) -> None:
    broken = BROKEN[case]
    target = f"broken/{case}{broken.suffix}"
    (endpoint.folder / "broken").mkdir(exist_ok=True)
    broken.make(endpoint.folder / target)
    for _ in range(2):
        failure = endpoint.failure(TargetModel=target)
        if case in _NOT_THERE:
            assert (failure.code, failure.status) == ("ValidationError", 400)
            assert broken.sentence in failure.message
        else:
            _require_model_error(failure, 400, broken.sentence)
    assert "Traceback" not in failure.message


def test_an_artifact_that_was_mended_is_served(endpoint: Endpoint) -> None:
    place = endpoint.folder / "broken/mended"
    _without("tokenizer.json")(place)
    tokenizer = (endpoint.folder / HEALTHY / "tokenizer.json").read_bytes()
    _require_model_error(endpoint.failure(TargetModel="broken/mended"), 400, "tokenizer.json is missing")
    (place / "tokenizer.json").write_bytes(tokenizer)
    endpoint.require_right("broken/mended")


def test_a_link_that_leads_out_of_the_prefix_is_not_followed(endpoint: Endpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "elsewhere", 600)
    (endpoint.folder / "broken").mkdir(exist_ok=True)
    (endpoint.folder / "broken/link").symlink_to(tmp_path / "elsewhere")
    failure = endpoint.failure(TargetModel="broken/link")
    assert (failure.code, failure.status) == ("ValidationError", 400)
    assert "lies outside of the endpoint's prefix" in failure.message


def test_nothing_escaped(endpoint: Endpoint) -> None:
    assert not Path("/tmp/flatshare-escaped").exists()
    assert not list(endpoint.folder.parent.rglob("escaped"))
