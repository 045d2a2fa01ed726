"""Whether a call's tensors fit a model's config, and what `reshape` makes of them on the way in."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flatshare.core.errors import BadInput, ModelFailed
from flatshare.core.interface import PLATFORM
from flatshare.core.signature import Signature, Task
from flatshare.core.tensor import Tensor
from flatshare.instance.workers.records import Answer, Ask
from flatshare.pyworker.frames import NamedArray
from flatshare.wire.triton_config import ENSEMBLE, MAPPED, ConfigTensor, TritonConfig


def signature(config: TritonConfig) -> Signature:
    """As callers see it."""
    platform = ENSEMBLE if config.backend == ENSEMBLE else _PLATFORMS.get(config.backend, config.backend)
    sides = config.tensor_infos(config.inputs), config.tensor_infos(config.outputs)
    return Signature(Task.TENSORS, platform, *sides, is_decoupled=config.is_decoupled)


_PLATFORMS = {MAPPED: PLATFORM, "onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}


def check(inputs: Mapping[str, Tensor | NamedArray], config: TritonConfig) -> None:
    """Names, types, sizes and the batch. Raises BadInput with what the model takes."""
    stated = {tensor.name: tensor for tensor in config.inputs}
    for tensor in inputs.values():
        known = stated.get(tensor.name)
        if known is None:
            raise BadInput(f"unexpected inference input '{tensor.name[:64]}' for model '{config.name}': it takes {', '.join(stated)}")
        _check_one(tensor, known, config)
    missing = [name for name, tensor in stated.items() if not tensor.is_optional and name not in inputs]
    if missing:
        raise BadInput(f"model '{config.name}' needs the input {', '.join(missing)}")
    if config.max_batch_size > 0:
        rows = {tensor.data.shape[0] for tensor in inputs.values()}
        if len(rows) > 1:
            raise BadInput(f"the inputs of model '{config.name}' have different batch sizes: {sorted(rows)}")
        if rows and max(rows) > config.max_batch_size:
            raise BadInput(f"inference request batch-size must be <= {config.max_batch_size} for '{config.name}', it is {max(rows)}")


def for_model(ask: Ask, config: TritonConfig) -> Ask:
    """The call as the model itself sees it, checked. Raises BadInput."""
    check({tensor.name: tensor for tensor in ask.inputs}, config)
    if all(tensor.model_shape is None for tensor in config.inputs):
        return ask
    return replace(ask, inputs=tuple(_reshaped(ask.inputs, config.inputs, config, is_output=False)))


def from_model(answer: Answer, config: TritonConfig) -> Answer:
    """The answer as callers see it. Raises ModelFailed if it cannot take the shape that the config states."""
    if all(tensor.model_shape is None for tensor in config.outputs):
        return answer
    try:
        return replace(answer, outputs=tuple(_reshaped(answer.outputs, config.outputs, config, is_output=True)))
    except BadInput as error:
        raise ModelFailed(str(error)) from error


def _check_one(tensor: Tensor | NamedArray, known: ConfigTensor, config: TritonConfig) -> None:
    if tensor.datatype != known.datatype:
        raise BadInput(
            f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{config.name}' expects '{known.datatype}'"
        )
    shape = tensor.data.shape
    dims = shape[1:] if config.max_batch_size > 0 else shape
    has_batch = config.max_batch_size <= 0 or len(shape) > 0
    if not has_batch or len(dims) != len(known.dims) or any(want not in {-1, size} for size, want in zip(dims, known.dims, strict=True)):
        expected = [-1, *known.dims] if config.max_batch_size > 0 else list(known.dims)
        raise BadInput(f"unexpected shape for input '{tensor.name}' for model '{config.name}': expected {expected}, got {list(shape)}")


def _reshaped(
    tensors: Iterable[NamedArray], stated: tuple[ConfigTensor, ...], config: TritonConfig, *, is_output: bool
) -> Iterable[NamedArray]:
    known = {tensor.name: tensor for tensor in stated}
    for tensor in tensors:
        spec = known.get(tensor.name)
        if spec is None or spec.model_shape is None:
            yield tensor
            continue
        batch = tensor.data.shape[:1] if config.max_batch_size > 0 else ()
        target = spec.dims if is_output else spec.model_shape
        try:
            yield replace(tensor, data=tensor.data.reshape((*batch, *target)))
        except ValueError as error:
            raise BadInput(f"tensor '{tensor.name}' of shape {list(tensor.data.shape)} cannot be reshaped to {list(target)}") from error
