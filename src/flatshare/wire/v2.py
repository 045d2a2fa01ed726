"""Open Inference Protocol v2, inference: JSON, and JSON with binary tensors behind it ⇄ calls and results.

https://github.com/kserve/open-inference-protocol and the binary tensor extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import struct
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from flatshare.core.call import InferCall, InferResult, Scalar
from flatshare.core.errors import BadInput, Unsupported
from flatshare.core.tensor import BF16, BYTES, DTYPES, Tensor

_MAX_RANK = 8  # more is no tensor that a model takes, and the product of a long shape takes minutes
_MAX_NAME = 256
FINAL = "triton_final_response"
_EMPTY_FINAL = "triton_enable_empty_final_response"
_KINDS = {"b": "b", "f": "iuf"}  # which JSON numbers a kind of tensor takes
_RESERVED = {"binary_data", "binary_data_output", "binary_data_size", "classification"}
_RESERVED |= {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", _EMPTY_FINAL}
"""The protocol's own parameters, not the model's. Triton's clients send the last six; none of our models keeps a state between calls."""


@dataclass(frozen=True, slots=True)
class BinaryOutputs:
    """Which outputs go as bytes behind the JSON: those that ask for it, and by default those that do not say."""

    asked: Mapping[str, bool]
    default: bool = False

    def has(self, name: str) -> bool:
        return self.asked.get(name, self.default)


@dataclass(frozen=True, slots=True)
class V2Request:
    call: InferCall
    binary: BinaryOutputs
    has_empty_final: bool = False
    """A stream ends with an answer that says so, if the last one did not."""


@dataclass(frozen=True, slots=True)
class V2Body:
    """A rendered answer. Without binary tensors, `header_bytes` is None and the body is JSON."""

    body: bytes
    header_bytes: int | None


def parse(fields: Mapping[str, Any], tail: bytes = b"") -> V2Request:
    """A request from its JSON object and the binary tensors behind it. Raises BadInput."""
    identity = fields.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadInput('"id" must be a string')
    inputs, left = {}, tail
    for item in _objects(fields.get("inputs"), "inputs"):
        tensor, left = _tensor(item, left)
        if tensor.name in inputs:
            raise BadInput(f"two input tensors have the name '{tensor.name}'")
        inputs[tensor.name] = tensor
    if left:
        raise BadInput(f"{len(left)} bytes lie behind the binary tensors that the JSON header names")
    parameters = _parameters(fields.get("parameters"))
    outputs = [(_name(item), _parameters(item.get("parameters"))) for item in _objects(fields.get("outputs", []), "outputs")]
    for _, values in outputs:
        _require_no_shared_memory(values)
    if any(values.get("classification") for _, values in outputs):
        raise BadInput('the "classification" extension is not served: ask for the output as it is')
    said = {name: bool(values["binary_data"]) for name, values in outputs if "binary_data" in values}
    binary = BinaryOutputs(said, default=bool(parameters.get("binary_data_output")))
    kept = {name: value for name, value in parameters.items() if name not in _RESERVED}
    return V2Request(InferCall(inputs, kept, tuple(name for name, _ in outputs), identity), binary, parameters.get(_EMPTY_FINAL) is True)


def render(request: V2Request, result: InferResult, model_name: str, parameters: Mapping[str, Scalar]) -> V2Body:
    """The answer: the outputs asked for, the result's remarks and `parameters`."""
    call, tails = request.call, []
    outputs = []
    for tensor in asked_for(call, result):
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if request.binary.has(tensor.name) or tensor.datatype == BF16:
            tails.append(to_bytes(tensor))
            item["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            item["data"] = _json_data(tensor)
        outputs.append(item)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": result.version, "outputs": outputs}
    if remarks := {**parameters, **flat_parameters(result)}:
        answer["parameters"] = remarks
    if call.id is not None:
        answer["id"] = call.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return V2Body(b"".join([head, *tails]), len(head) if tails else None)


def as_line(body: V2Body) -> bytes:
    """One answer of a stream: JSON, with what would be behind it under `binary` in base64."""
    if body.header_bytes is None:
        return body.body
    fields = orjson.loads(body.body[: body.header_bytes])
    return orjson.dumps(fields | {"binary": b64encode(body.body[body.header_bytes :]).decode()})


def as_json(head: bytes, tail: bytes) -> bytes:
    """An answer of ours whose binary tensors are told as JSON; BF16 as its bits, texts that are no UTF-8 with marks in place."""
    answer = orjson.loads(head)
    for item in answer["outputs"]:
        size = item.pop("parameters", {}).get("binary_data_size")
        if size is not None:
            tensor, tail = from_bytes(item["name"], item["datatype"], tuple(item["shape"]), tail[:size]), tail[size:]
            flat = tensor.data.reshape(-1)
            item["data"] = [text.decode("utf-8", "replace") for text in flat] if tensor.datatype == BYTES else flat.tolist()
    return orjson.dumps(answer)


def asked_for(call: InferCall, result: InferResult) -> list[Tensor]:
    """The outputs in the order in which the caller named them; all if none was named. Raises BadInput for one that does not exist."""
    if not call.wanted:
        return list(result.outputs)
    known = {tensor.name: tensor for tensor in result.outputs}
    unknown = [name for name in call.wanted if name not in known]
    if unknown:
        raise BadInput(f"the model has no output '{unknown[0]}': it gives {', '.join(known)}")
    return [known[name] for name in call.wanted]


def flat_parameters(result: InferResult) -> dict[str, Scalar]:
    """Remarks as scalars, since v2 parameters are no lists."""
    return {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in result.parameters.items()}


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Tensor:
    """A tensor from its binary form: little-endian numbers, or texts with a length of four bytes before each. Raises BadInput."""
    count = prod(shape)
    if datatype == BYTES:
        return Tensor(name, datatype, _split_texts(name, raw, count).reshape(shape))
    dtype = DTYPES[datatype].newbyteorder("<")
    if len(raw) != count * dtype.itemsize:
        raise BadInput(f"tensor '{name}' has {len(raw)} bytes, {datatype} {list(shape)} takes {count * dtype.itemsize}")
    return Tensor(name, datatype, np.frombuffer(raw, dtype).reshape(shape))


def to_bytes(tensor: Tensor) -> bytes:
    """The inverse of `from_bytes`."""
    if tensor.datatype == BYTES:
        return b"".join(struct.pack("<I", len(item)) + item for item in tensor.data.reshape(-1))
    return np.ascontiguousarray(tensor.data, DTYPES[tensor.datatype].newbyteorder("<")).tobytes()


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadInput(f'"{name}" must be a list of tensors, each an object')
    return value


def _name(item: Mapping[str, Any]) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise BadInput(f"a tensor needs a name of 1 to {_MAX_NAME} characters")
    return name


def _parameters(value: object) -> dict[str, Scalar]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str | int | float | bool) for item in value.values()):
        raise BadInput('"parameters" must be an object of texts, numbers and booleans')
    return value


def _require_no_shared_memory(parameters: Mapping[str, Scalar]) -> None:
    if "shared_memory_region" in parameters:
        raise Unsupported("tensors in shared memory are not supported: send them in the request, as JSON or binary data")


def _tensor(item: Mapping[str, Any], tail: bytes) -> tuple[Tensor, bytes]:
    """One input, and what of the binary tail is left."""
    name, datatype, shape = _name(item), item.get("datatype"), item.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise BadInput(f"tensor '{name}' is of datatype {short(datatype)}: known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise BadInput(f"tensor '{name}' needs a shape of at most {_MAX_RANK} sizes, such as [2] or [2, 1]")
    parameters = _parameters(item.get("parameters"))
    _require_no_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(name, datatype, tuple(shape), item.get("data")), tail
    if type(size) is not int or not 0 <= size <= len(tail):
        raise BadInput(f"tensor '{name}' claims {short(size)} binary bytes, {len(tail)} are left behind the JSON header")
    return from_bytes(name, datatype, tuple(shape), tail[:size]), tail[size:]


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """v2 data may be flat, or nested as its shape is."""
    if not isinstance(data, list):
        raise BadInput(f"tensor '{name}' needs data: a list")
    array = _texts_array(name, data) if datatype == BYTES else _numbers_array(name, datatype, data)
    if array.size != prod(shape):
        raise BadInput(f"tensor '{name}' has {array.size} elements, its shape {list(shape)} says {prod(shape)}")
    return Tensor(name, datatype, array.reshape(shape))


def _texts_array(name: str, data: list[Any]) -> NDArray[Any]:
    array = np.array(data, object)
    flat = array.reshape(-1)
    if not all(isinstance(item, str) for item in flat):
        raise BadInput(f"tensor '{name}' is of datatype BYTES: its data must be texts")
    encoded = np.empty(len(flat), object)
    encoded[:] = [item.encode() for item in flat]
    return encoded


def _numbers_array(name: str, datatype: str, data: list[Any]) -> NDArray[Any]:
    if datatype == BF16:
        raise BadInput(f"tensor '{name}' is of datatype BF16, which JSON cannot say: send it as a binary tensor")
    dtype = DTYPES[datatype]
    try:
        if dtype.kind in "iu":
            return _integers_array(name, dtype, data)
        found = np.array(data) if data else np.empty(0, dtype)
    except (ValueError, OverflowError) as error:
        raise BadInput(f"tensor '{name}': its data is no regular list of {datatype}") from error
    if found.size and found.dtype.kind not in _KINDS[dtype.kind]:
        raise BadInput(f"tensor '{name}' is of datatype {datatype}: its data holds something else")
    with np.errstate(over="ignore"):
        return found.astype(dtype)


def _integers_array(name: str, dtype: np.dtype[Any], data: list[Any]) -> NDArray[Any]:
    """By way of Python's integers: numpy would make floats of a list with large ones."""
    found = np.array(data, object)
    if not all(type(item) is int for item in found.reshape(-1)):
        raise BadInput(f"tensor '{name}' is of datatype {dtype.name.upper()}: its data holds something else")
    try:
        return found.astype(dtype)
    except OverflowError as error:
        raise BadInput(f"tensor '{name}' has numbers that {dtype.name.upper()} cannot hold") from error


def _split_texts(name: str, raw: bytes, count: int) -> NDArray[Any]:
    texts: list[bytes] = []
    position = 0
    while position + 4 <= len(raw) and len(texts) < count:
        (length,) = struct.unpack_from("<I", raw, position)
        texts.append(raw[position + 4 : position + 4 + length])
        position += 4 + length
    if position != len(raw) or len(texts) != count:
        raise BadInput(f"tensor '{name}': its {len(raw)} bytes are not {count} texts, each behind its length in four bytes")
    array = np.empty(count, object)
    array[:] = texts
    return array


def _json_data(tensor: Tensor) -> Any:
    """Flat. FP16 has no JSON of its own: a number is a number."""
    flat = tensor.data.reshape(-1)
    if tensor.datatype == BYTES:
        try:
            return [item.decode() for item in flat]
        except UnicodeDecodeError as error:
            raise BadInput(f"output '{tensor.name}' is not text: ask for it as binary data") from error
    return np.ascontiguousarray(flat, np.float32) if tensor.datatype == "FP16" else np.ascontiguousarray(flat)


def short(value: object) -> str:
    """For an error's sentence: a caller's megabytes are not sent back."""
    return repr(value)[:64]
