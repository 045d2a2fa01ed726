"""Takes the weights out of `model.onnx` into a file beside it, so that a worker maps them instead of reading them into private memory.

The graph names them as external data at their true places: it is a whole model for every other reader too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from flatshare.core.errors import BadPackage

WEIGHTS = "model.weights.safetensors"
_WORTH_BYTES = 1024  # smaller ones are read while the session is made
_ALIGNMENT = 64


def split_weights(model: Path, into: Path) -> tuple[Path, Path] | None:
    """The graph and the weights as two new files; None if there is nothing to take out. Raises BadPackage for what is no ONNX model."""
    try:
        graph = onnx.load(model, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise BadPackage(f"{model.name} cannot be read as ONNX: {error}") from error
    found = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer if _is_worth_it(item)}
    if not found:
        return None
    header, places = _layout(found)
    weights, rest = into / WEIGHTS, into / model.name
    with weights.open("wb") as file:
        file.write(header)
        for name, array in found.items():
            file.write(bytes(places[name] - file.tell()))
            file.write(np.ascontiguousarray(array).tobytes())
    for item in graph.graph.initializer:
        if item.name in places:
            _make_external(item, places[item.name], found[item.name].nbytes)
    rest.write_bytes(graph.SerializeToString())
    return rest, weights


def _is_worth_it(item: Any) -> bool:
    return item.data_type == onnx.TensorProto.FLOAT and item.data_location != onnx.TensorProto.EXTERNAL and _size(item) >= _WORTH_BYTES


def _size(item: Any) -> int:
    return 4 * int(np.prod(item.dims, dtype=np.int64))


def _layout(arrays: dict[str, NDArray[Any]]) -> tuple[bytes, dict[str, int]]:
    """The file's head, padded so that the data begins aligned, and each tensor's place in the file. Sizes are multiples of four bytes."""
    entries: dict[str, Any] = {}
    position = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = orjson.dumps(entries)
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + entry["data_offsets"][0] for name, entry in entries.items()}


def _make_external(item: Any, offset: int, size: int) -> None:
    for field in ("raw_data", "float_data"):
        item.ClearField(field)
    item.data_location = onnx.TensorProto.EXTERNAL
    del item.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(size))):
        entry = item.external_data.add()
        entry.key, entry.value = key, value
