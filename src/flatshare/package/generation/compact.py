"""Compact models: matrices as int8, a scale for each output, a quarter of the memory and of what a step must read.

A package asks for it with `{"weights": "int8"}` in flatshare.json. Whether it may be is measured for every matrix.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.folder import Folder
from flatshare.package.graphs.steps import INT8, REST, SCALE
from flatshare.package.tensor_source import Source

MAX_LOSS = 0.02
"""Root of the mean square of what quantising changes, against that of the matrix: trained matrices lose 0.5 to 1.2 %."""

_REST_STEPS = 254  # what rounding leaves is at most half a step, and 127 of these are half


def wants_compact(folder: Folder) -> bool:
    """Raises UnsupportedModel for a type of weights that is not served."""
    wanted = folder.optional_json("flatshare.json").get("weights", "float32")
    if wanted not in {"float32", "int8"}:
        raise UnsupportedModel(f"flatshare.json: weights {repr(wanted)[:64]} are not served: 'float32' and 'int8' are")
    return bool(wanted == "int8")


def compact_source(sources: dict[str, Source], name: str) -> Source | None:
    """The int8 matrix or the scales that a compact graph asks for under `name`; None if the checkpoint has no such matrix."""
    ending = next((ending for ending in (INT8, SCALE) if name.endswith(ending)), None)
    if ending is None:
        return None
    base_name = name.removesuffix(ending).removesuffix(REST)
    is_rest = name.removesuffix(ending) != base_name
    base = sources.get(base_name)
    if base is None or len(base.shape) != 2:
        return None
    outputs, inputs = base.shape
    if ending == SCALE:
        return Source((outputs,), "F32", lambda: scales(base.float32()) / np.float32(_REST_STEPS if is_rest else 1))
    return Source((inputs, outputs), "I8", partial(_rest if is_rest else _quantised, base, base_name))


def scales(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """[outputs]: so that the largest of each row is 127."""
    found: NDArray[np.float32] = np.maximum(np.abs(matrix).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
    return found


def _quantised(base: Source, name: str) -> NDArray[np.int8]:
    """[inputs, outputs]. Raises BadPackage if too much would be lost."""
    matrix = base.float32()
    scale = scales(matrix)[:, None]
    rounded = np.round(matrix / scale)
    size = float(np.sqrt(np.mean(matrix**2)))
    loss = float(np.sqrt(np.mean((rounded * scale - matrix) ** 2))) / size if size else 0.0
    if loss > MAX_LOSS:
        raise BadPackage(
            f"as int8, '{name}' would lose {100 * loss:.1f} % (at most {100 * MAX_LOSS:.0f} % are accepted): leave out flatshare.json"
        )
    return np.ascontiguousarray(rounded.astype(np.int8).T)


def _rest(base: Source, _: str) -> NDArray[np.int8]:
    """[inputs, outputs]: what rounding left, in steps of a 254th."""
    scaled = base.float32() / scales(base.float32())[:, None]
    return np.ascontiguousarray(np.round((scaled - np.round(scaled)) * _REST_STEPS).astype(np.int8).T)
