"""What is fuzzed: every reader of bytes that strangers send or pack, with good seeds for each."""

import gzip
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson
import zstandard

from flatshare.control.app import OPERATIONS
from flatshare.core.errors import FlatshareError
from flatshare.core.settings import StoreLimits
from flatshare.package.checkpoint import read_checkpoint
from flatshare.package.folder import Folder
from flatshare.package.graphs.heads import generated_graph
from flatshare.package.tokenizer import canonical_tokenizer
from flatshare.package.tokenizer_files import tokenizer_json as tokenizer_json_of
from flatshare.package.weights import WeightsFile
from flatshare.security.keys import _parse
from flatshare.store import archive
from flatshare.wire import asks, cbor, container, infer, sagemaker, sigv4
from flatshare.wire.aws_json import sagemaker_codec
from flatshare.wire.aws_services import cloudwatch_cbor_codec, cloudwatch_query_codec
from flatshare.wire.http import Reply, Request
from tests.checkpoints import CONFIG, MODULES, random_weights, safetensors, tokenizer_json
from tests.fuzz import models
from tests.wire.requests import SECRET, signed

_CLOUDWATCH = ("PutMetricData", "GetMetricData")
LIMITS = StoreLimits(max_unpacked_bytes=4 * 2**20, max_files=100, max_json_bytes=2**20)


@dataclass(frozen=True, slots=True)
class Target:
    """`run` may return, or raise a FlatshareError; anything else is a failure."""

    seeds: list[bytes]
    run: Callable[[bytes, Path], None]


def _control(content: bytes, _: Path) -> None:
    operation, body = content.partition(b"\n")[::2]
    request = Request("POST", "/", {b"x-amz-target": b"SageMaker." + operation}, body)
    asks.of_control_call(request)
    asks.is_mutation(request)
    sagemaker_codec().call(request, served=OPERATIONS)


def _query(content: bytes, _: Path) -> None:
    request = Request("POST", "/", {b"content-type": b"application/x-www-form-urlencoded"}, content)
    cloudwatch_query_codec().call(request, served=_CLOUDWATCH)


def _cbor(content: bytes, _: Path) -> None:
    path = "/service/GraniteServiceVersion20100801/operation/PutMetricData"
    cloudwatch_cbor_codec().call(Request("POST", path, {b"smithy-protocol": b"rpc-v2-cbor"}, content), served=_CLOUDWATCH)


def _gzip(content: bytes, _: Path) -> None:
    headers = {b"x-amz-target": b"SageMaker.ListModels", b"content-encoding": b"gzip"}
    sagemaker_codec().call(Request("POST", "/", headers, content), served=OPERATIONS)


def _inferences(content: bytes, _: Path) -> None:
    kind, body = content.partition(b"\n")[::2]
    infer.parse(kind.decode("latin-1"), body)


def _container(content: bytes, _: Path) -> None:
    container.error_sentence(Reply(400, content))
    _each(
        lambda: container.parse_load(content),
        lambda: container.parse_memory(content),
        lambda: container.parse_source(Request("POST", "/", {b"x-flatshare-source-uri": content})),
    )


def _invocation(content: bytes, _: Path) -> None:
    path, target = content.partition(b"\n")[::2]
    request = Request("POST", path.decode("utf-8", "replace"), {b"x-amzn-sagemaker-target-model": target})
    call = sagemaker.parse_invocation(request)
    if call is not None and call.target is not None:
        uri = sagemaker.artifact_uri("s3://bucket/prefix/", call.target)
        assert uri.startswith("s3://bucket/prefix/")
        assert ".." not in uri.removeprefix("s3://bucket/prefix/").split("/")
        asks.of_invocation(call)


def _request_bytes(request: Request) -> bytes:
    lines = [request.raw_path + b"?" + request.query, *(b"%b:%b" % pair for pair in request.headers.items())]
    return b"\n".join(lines) + b"\n\n" + request.body


def _signature(content: bytes, _: Path) -> None:
    head, body = content.partition(b"\n\n")[::2]
    target, *lines = head.split(b"\n")
    path, query = target.partition(b"?")[::2]
    headers = {line.partition(b":")[0]: line.partition(b":")[2] for line in lines}
    request = Request("POST", path.decode("latin-1"), headers, body, query, path)
    claim = sigv4.claim_of(request)
    _each(lambda: sigv4.require_fresh(claim, 0.0), lambda: sigv4.require_scope(claim, "us-east-1", "sagemaker"))
    assert sigv4.verified_body(request, claim, sigv4.signing_key(SECRET, claim)) == body


def _keys(content: bytes, _: Path) -> None:
    _parse(content, Path("keys.json"))


def _weights(content: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    weights = WeightsFile(path)
    for entry in weights.entries.values():
        _each(partial(weights.float32, entry))


def _unpack(kind: archive.ArchiveKind) -> Callable[[bytes, Path], None]:
    def run(content: bytes, folder: Path) -> None:
        (folder / "packed").write_bytes(content)
        try:
            archive.unpack(folder / "packed", folder / "into", kind, LIMITS)
            archive.checkpoint_folder(folder / "into")
        finally:
            assert {path.name for path in folder.iterdir()} <= {"packed", "into"}
            assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= len(content) + LIMITS.max_unpacked_bytes

    return run


def _config(content: bytes, folder: Path) -> None:
    parts = content.split(b"\n\n", 3)
    for name, part in zip(("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"), parts, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(part)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    checkpoint = read_checkpoint(folder, LIMITS)
    assert checkpoint.max_tokens > 0
    if getattr(checkpoint.trunk, "layers", 0) <= 4:  # a graph of a thousand layers is honest work, and takes its time
        generated_graph(checkpoint.trunk, checkpoint.purpose.head, has_pairs=False)


def _tokenizer(content: bytes, _: Path) -> None:
    canonical_tokenizer(content, vocabulary=100, max_tokens=64)


def _vocabulary(content: bytes, folder: Path) -> None:
    """vocab.txt, or vocab.json with merges.txt, behind tokenizer_config.json."""
    settings, *parts = content.split(b"\n\n", 2)
    names = ("vocab.txt",) if len(parts) < 2 else ("vocab.json", "merges.txt")
    for name, part in zip(("tokenizer_config.json", *names), (settings, *parts), strict=False):
        (folder / name).write_bytes(part)
    canonical_tokenizer(tokenizer_json_of(Folder(folder, LIMITS), "bert"), vocabulary=1000, max_tokens=64)


def _each(*calls: Callable[[], object]) -> None:
    """All of them, whatever the others raise of ours."""
    for call in calls:
        try:
            call()
        except FlatshareError:
            continue


def _tar_seeds() -> list[bytes]:
    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name in ("model", "model/config.json", "model/" + "n" * (90 if form == tarfile.USTAR_FORMAT else 120), "model/é.json"):
                member = tarfile.TarInfo(name)
                member.type = tarfile.DIRTYPE if name == "model" else tarfile.REGTYPE
                member.size = 0 if member.isdir() else 5
                tar.addfile(member, io.BytesIO(b"hello"))
        seeds.append(out.getvalue())
    return seeds


def _control_seeds() -> list[bytes]:
    model = {"ModelName": "m", "PrimaryContainer": {"Image": "i", "Mode": "MultiModel", "ModelDataUrl": "s3://b/p/"}, "Tags": []}
    variant = {"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.xlarge", "InitialVariantWeight": 1.5}
    calls = {
        "CreateModel": model,
        "CreateEndpointConfig": {"EndpointConfigName": "c", "ProductionVariants": [variant]},
        "CreateEndpoint": {"EndpointName": "e", "EndpointConfigName": "c", "Tags": [{"Key": "k", "Value": "v"}]},
        "UpdateEndpointWeightsAndCapacities": {
            "EndpointName": "e",
            "DesiredWeightsAndCapacities": [{"VariantName": "v", "DesiredWeight": 2}],
        },
        "ListEndpoints": {"SortBy": "Name", "MaxResults": 10, "CreationTimeAfter": 1.5, "NameContains": "x"},
        "AddTags": {"ResourceArn": "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e", "Tags": [{"Key": "k", "Value": "v"}]},
    }
    return [name.encode() + b"\n" + orjson.dumps(body) for name, body in calls.items()]


def _inference_seeds() -> list[bytes]:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": [["a"], ["b"]]}
    numbers = {"name": "n", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    v2 = {"id": "1", "inputs": [tensor], "outputs": [{"name": "embedding"}], "parameters": {"a": 1}}
    head = orjson.dumps({"inputs": [numbers]})
    bodies = [b'{"inputs": "hello"}', b'{"query": "a", "passages": ["b", "c"]}', orjson.dumps(v2)]
    binary = infer.binary_content_type(len(head)) + b"\n" + head + bytes(8)
    return [*(b"application/json\n" + body for body in bodies), "text/plain\né".encode(), binary]


def _metric() -> dict[str, object]:
    datum = {"MetricName": "m", "Value": 1.5, "Unit": "None", "Dimensions": [{"Name": "n", "Value": "v"}]}
    return {"Namespace": "n", "MetricData": [datum]}


_FORM = b"Action=PutMetricData&Version=2010-08-01&Namespace=n&MetricData.member.1.MetricName=m&MetricData.member.1.Value=1.5"


def _signature_seeds() -> list[bytes]:
    plain = signed("POST", "/endpoints/e/invocations?a=b%20c", b"hello", X_Amzn_SageMaker_Target_Model="acme/x")
    return [
        _request_bytes(plain),
        _request_bytes(signed("POST", "/x", b"", expires_s=60)),
        _request_bytes(signed("POST", "/", b"{}", token="t")),
    ]


_KEY = {
    "id": "K",
    "name": "n",
    "secret": "s" * 16,
    "created_s": 0,
    "grants": [{"actions": ["*"], "endpoints": ["e"], "target_models": ["a/*"]}],
}
_TARS = _tar_seeds()
TARGETS = {
    "control calls": Target(_control_seeds(), _control),
    "control calls in gzip": Target([gzip.compress(b'{"NameContains": "x"}', mtime=0)], _gzip),
    "forms": Target([_FORM], _query),
    "CBOR": Target([cbor.dumps(_metric())], _cbor),
    "inferences": Target(_inference_seeds(), _inferences),
    "the container contract": Target([b'{"model_name": "m", "url": "/opt/ml/models/m/model"}', b'{"memory_bytes": 5}'], _container),
    "invocations": Target([b"/endpoints/e/invocations\nacme/query", "/endpoints/e/invocations\né/x.tar.gz".encode()], _invocation),
    "signatures": Target(_signature_seeds(), _signature),
    "access keys": Target([orjson.dumps({"version": 1, "keys": [_KEY]})], _keys),
    "weights": Target([safetensors(dict(list(random_weights(0).items())[:3]), metadata={"format": "pt"})], _weights),
    "tar": Target(_TARS, _unpack("tar")),
    "tar.gz": Target([gzip.compress(tar, mtime=0) for tar in _TARS], _unpack("tar.gz")),
    "tar.zst": Target([zstandard.compress(tar) for tar in _TARS], _unpack("tar.zst")),
    "configs": Target(
        [b"\n\n".join(map(orjson.dumps, (CONFIG, MODULES, {"pooling_mode_mean_tokens": True}, {"max_seq_length": 32})))], _config
    ),
    "tokenizers": Target([tokenizer_json().encode()], _tokenizer),
    "vocabularies": Target(
        [
            b'{"do_lower_case": true, "cls_token": "[CLS]"}\n\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##s\n',
            b'{"cls_token": {"content": "<s>"}}\n\n{"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5}\n\n#version: 0.2\na b\n',
        ],
        _vocabulary,
    ),
    "gRPC messages": Target(models.grpc_seeds(), models.grpc_messages),
    "Triton configs": Target(models.CONFIG_SEEDS, models.triton_configs),
    "Triton repositories": Target(models.REPOSITORY_SEEDS, models.triton_repositories),
    "ONNX graphs": Target(models.onnx_seeds(), models.onnx_graphs),
}


def run(name: str, content: bytes) -> None:
    """Raises whatever is not the fault of the content."""
    folder = Path(tempfile.mkdtemp(prefix="flatshare-fuzz-"))
    try:
        TARGETS[name].run(content, folder)
    except FlatshareError as error:
        sentence = str(error)
    else:
        sentence = "fine"
    finally:
        shutil.rmtree(folder)
    assert 0 < len(sentence) < 20_000, "a caller's megabytes are not sent back"
