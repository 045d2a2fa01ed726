"""What is fuzzed of the readers of models' files and of gRPC's messages: Triton repositories, ONNX graphs, tensors on their way."""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from flatshare.core.settings import StoreLimits
from flatshare.package import onnx_files
from flatshare.package.triton.code import code_digest, imported_packages
from flatshare.package.triton.onnx_weights import split_weights
from flatshare.package.triton.repository import is_repository, read_repository
from flatshare.wire import infer, triton_config, v2_grpc, v2_http
from flatshare.wire.v2_schema import MESSAGES
from tests.contract.packages import DOUBLE, config

_LIMITS = StoreLimits(max_unpacked_bytes=4 * 2**20, max_files=100, max_json_bytes=2**20)


def grpc_messages(content: bytes, _: Path) -> None:
    """As grpcio does it: what is no message never reaches us."""
    try:
        request = MESSAGES["ModelInferRequest"].FromString(content)
    except DecodeError:
        return
    message = v2_grpc.parse(request)
    headers = dict(v2_http.instance_headers(message.json_bytes, "m"))
    infer.parse(headers[b"content-type"].decode(), message.body)


def grpc_seeds() -> list[bytes]:
    raw = MESSAGES["ModelInferRequest"](model_name="m", id="1")
    raw.inputs.add(name="A", datatype="FP32", shape=[1, 2])
    raw.raw_input_contents.append(np.array([1, 2], np.float32).tobytes())
    typed = MESSAGES["ModelInferRequest"](model_name="m")
    typed.inputs.add(name="A", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"b"])
    typed.outputs.add(name="B")
    typed.parameters["temperature"].double_param = 0.5
    return [raw.SerializeToString(), typed.SerializeToString()]


def triton_configs(content: bytes, _: Path) -> None:
    json = triton_config.parse(content.decode("utf-8", "replace"), "m")
    triton_config.read(json, "m")


def triton_repositories(content: bytes, folder: Path) -> None:
    """A config and code, apart by a line of dashes."""
    settings, _, code = content.partition(b"\n---\n")
    (folder / "m" / "1").mkdir(parents=True)
    (folder / "m" / "config.pbtxt").write_bytes(settings)
    (folder / "m" / "1" / "model.py").write_bytes(code)
    if is_repository(folder):
        for model in read_repository(folder, _LIMITS).models.values():
            for version in model.versions:
                code_digest(model.folder, version, model.config.backend, None)
                imported_packages(model.folder, version, model.config.backend)


CONFIG_SEEDS = [
    config().encode(),
    config(more='platform: "ensemble" ensemble_scheduling { step [{ model_name: "s" input_map { key: "A" value: "A" } }] }').encode(),
    config(
        more='backend: "python" dynamic_batching { preferred_batch_size: [4] } instance_group [{ count: 2 kind: KIND_CPU }] '
        'parameters { key: "P" value { string_value: "v" } } version_policy { latest { num_versions: 2 } }'
    ).encode(),
]
REPOSITORY_SEEDS = [config().encode() + b"\n---\n" + DOUBLE.encode()]


def onnx_graphs(content: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(content)
    (folder / "out").mkdir()
    split_weights(folder / "model.onnx", folder / "out")
    onnx_files.read_onnx(folder / "model.onnx")


def onnx_seeds() -> list[bytes]:
    weight = numpy_helper.from_array(np.zeros((40, 40), np.float32), "w")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", "tokens", 40])
    graph = helper.make_graph([helper.make_node("Gather", ["w", "input_ids"], ["logits"])], "g", [ids], [out], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return [model.SerializeToString()]
