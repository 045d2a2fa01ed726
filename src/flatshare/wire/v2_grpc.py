"""Open Inference Protocol v2 over gRPC ⇄ JSON with binary tensors behind it, which is what instances take.

Only bytes are moved: whether tensors are right is checked where they are used, so that every road hears the same sentences.
"""

import struct
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from flatshare.core.call import FIRST_VERSION, Scalar
from flatshare.core.errors import BadInput, ModelFailed, Unsupported
from flatshare.core.tensor import BYTES, DTYPES, text_tensor
from flatshare.wire import infer, v2, v2_http
from flatshare.wire.v2_schema import MESSAGES

_CONTENTS = {"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents"}
_CONTENTS |= {"FP64": "fp64_contents", BYTES: "bytes_contents"}
_CONTENTS |= dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents") | dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents")
_FORM_ONLY = {"binary_data", "binary_data_size", "binary_data_output"}  # of HTTP: here raw contents say it


@dataclass(frozen=True, slots=True)
class V2Message:
    """A request's JSON with its binary tensors behind it."""

    body: bytes
    json_bytes: int


def parse(request: Any) -> V2Message:
    """A ModelInferRequest. Raises BadInput."""
    tails = list(request.raw_input_contents)
    if tails and len(tails) != len(request.inputs):
        raise BadInput(f"raw_input_contents has {len(tails)} entries for {len(request.inputs)} inputs: send all inputs raw, or none")
    inputs = []
    for index, item in enumerate(request.inputs):
        parameters = scalars(item.parameters) if item.parameters else {}
        if "shared_memory_region" in parameters:
            raise Unsupported("tensors in shared memory are not supported: send them in the request")
        if index == len(tails):
            tails.append(_raw(item))
        elif item.HasField("contents"):
            raise BadInput(f"tensor '{item.name[:64]}' has contents beside raw_input_contents: send the one or the other")
        parameters = {k: v for k, v in parameters.items() if k not in _FORM_ONLY} | {"binary_data_size": len(tails[index])}
        inputs.append({"name": item.name, "datatype": item.datatype, "shape": list(item.shape), "parameters": parameters})
    said = {k: v for k, v in scalars(request.parameters).items() if k not in _FORM_ONLY}
    fields: dict[str, Any] = {"inputs": inputs, "parameters": {**said, "binary_data_output": True}}
    if request.outputs:
        fields["outputs"] = [_wanted(item) for item in request.outputs]
    if request.id:
        fields["id"] = request.id
    try:
        head = orjson.dumps(fields)
    except orjson.JSONEncodeError as error:
        raise BadInput(f"the request's parameters cannot be passed on: {error}") from error
    return V2Message(b"".join([head, *tails]), len(head))


def render(body: bytes, content_type: bytes, model_name: str) -> Any:
    """A ModelInferResponse from an instance's answer. Raises ModelFailed if that is no v2 answer."""
    size = v2_http.json_size(content_type)
    try:
        fields = orjson.loads(body if size is None else body[:size])
        response = MESSAGES["ModelInferResponse"](model_name=model_name, id=fields.get("id") or "")
        response.model_version = fields["model_version"]
        set_scalars(response.parameters, fields.get("parameters", {}))
        begin = size or 0
        for item in fields["outputs"]:
            end = begin + item["parameters"]["binary_data_size"]
            response.outputs.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
            response.raw_output_contents.append(body[begin:end])
            begin = end
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFailed("the model's container did not answer with v2 tensors in binary form") from error
    return response


def render_line(line: bytes, model_name: str, identity: str) -> Any:
    """A ModelInferResponse from one line of a stream: an answer of a decoupled model, or what a model writes (wire/generation.py).

    A piece of text is the output `text`; the last response has the whole texts, and why each ended. Raises ModelFailed.
    """
    fields = orjson.loads(line)
    if "error" in fields:
        raise ModelFailed(str(fields["error"]))
    if "outputs" in fields:
        tail = b64decode(fields.pop("binary", ""))
        head = orjson.dumps(fields)
        return render(head + tail, infer.binary_content_type(len(head)), model_name)
    response = MESSAGES["ModelInferResponse"](model_name=model_name, model_version=FIRST_VERSION, id=identity)
    done = fields.get("done")
    if done is None:
        set_scalars(response.parameters, {"prompt": fields["prompt"], "choice": fields["choice"], "triton_final_response": False})
        tensors = [text_tensor("text", [fields["text"]])]
    else:
        set_scalars(response.parameters, {"triton_final_response": True, "model_digest": done["model"]["digest"]})
        names = {"complete_text": "text", "finish_reason": "finish_reason"}
        tensors = [text_tensor(name, [text[field] for text in done["texts"]]) for name, field in names.items()]
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(v2.to_bytes(tensor))
    return response


def scalars(parameters: Mapping[str, Any]) -> dict[str, Scalar]:
    """A map of InferParameter or ModelRepositoryParameter. One without a value is left out."""
    chosen = {key: parameter.WhichOneof("parameter_choice") for key, parameter in parameters.items()}
    return {key: getattr(parameters[key], choice) for key, choice in chosen.items() if choice is not None}


def set_scalars(parameters: Any, values: Mapping[str, Scalar]) -> None:
    """The inverse of `scalars`."""
    for key, value in values.items():
        if isinstance(value, bool):
            parameters[key].bool_param = value
        elif isinstance(value, int):
            parameters[key].int64_param = value
        elif isinstance(value, float):
            parameters[key].double_param = value
        else:
            parameters[key].string_param = value


def _wanted(item: Any) -> dict[str, Any]:
    return {"name": item.name, "parameters": {k: v for k, v in scalars(item.parameters).items() if k not in _FORM_ONLY}}


def _raw(item: Any) -> bytes:
    """Typed contents in their binary form. Raises BadInput for values that the datatype cannot hold, or a datatype without contents."""
    if item.datatype not in DTYPES:
        return b""  # the instance says which are known
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise BadInput(f"tensor '{item.name[:64]}' is of datatype {item.datatype}: send it in raw_input_contents")
    others = [descriptor.name for descriptor, _ in item.contents.ListFields() if descriptor.name != field]
    if others:
        raise BadInput(f"tensor '{item.name[:64]}' is of datatype {item.datatype}, whose contents go in {field}, not in {others[0]}")
    values = getattr(item.contents, field)
    if item.datatype == BYTES:
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    dtype = DTYPES[item.datatype].newbyteorder("<")
    found = np.array(values) if values else np.empty(0, dtype)
    with np.errstate(over="ignore"):
        converted = found.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(converted, found):
        raise BadInput(f"tensor '{item.name[:64]}' has numbers that {item.datatype} cannot hold")
    return converted.tobytes()
