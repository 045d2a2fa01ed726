"""`model_warmup`: requests that a model answers before it counts as loaded."""

from pathlib import Path

import numpy as np

from flatshare.core.errors import FlatshareError, ModelFailed
from flatshare.core.tensor import BYTES, DTYPES
from flatshare.instance.backends.triton.model import Step, TritonModel
from flatshare.instance.workers.records import Ask
from flatshare.pyworker.frames import BadFrame, NamedArray, decode_texts
from flatshare.wire.triton_config import TritonConfig, Warmup, WarmupTensor


async def warm_up(model: TritonModel, package: Path) -> None:
    """Raises ModelFailed if a model does not answer what its own config says it should."""
    for (name, _), step in model.steps.items():
        for warmup in step.config.warmups:
            try:
                await _send(step, warmup, package / model.folder_of(name))
            except (FlatshareError, OSError, BadFrame, ValueError) as error:
                raise ModelFailed(f"model '{name}' failed its warm-up request '{warmup.name}': {error}") from error


async def _send(step: Step, warmup: Warmup, folder: Path) -> None:
    for _ in range(warmup.count):
        await step.infer(Ask(tuple(_tensor(tensor, warmup, step.config, folder) for tensor in warmup.tensors)))


def _tensor(tensor: WarmupTensor, warmup: Warmup, config: TritonConfig, folder: Path) -> NamedArray:
    shape = ((warmup.batch_size,) if config.max_batch_size > 0 else ()) + tensor.dims
    if tensor.kind not in {"zero_data", "random_data"}:
        raw = (folder / "warmup" / Path(tensor.kind).name).read_bytes()
        data = decode_texts(raw) if tensor.datatype == BYTES else np.frombuffer(raw, DTYPES[tensor.datatype])
        return NamedArray(tensor.name, tensor.datatype, data.reshape(shape))
    if tensor.datatype == BYTES:
        texts = np.empty(shape, np.object_)
        texts.fill(b"")
        return NamedArray(tensor.name, tensor.datatype, texts)
    dtype = DTYPES[tensor.datatype]
    if tensor.kind == "random_data":
        random = np.random.default_rng(0)  # the same for everybody, so that a failure can be seen again
        data = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2 if dtype.kind == "b" else 128, shape)
        return NamedArray(tensor.name, tensor.datatype, data.astype(dtype))
    return NamedArray(tensor.name, tensor.datatype, np.zeros(shape, dtype))
