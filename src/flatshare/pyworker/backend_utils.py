"""The module `triton_python_backend_utils`, one copy for each model, so that what a model calls knows who called.

Written from Triton's public API (https://github.com/triton-inference-server/python_backend); `map_safetensors` is our one addition.
"""

from types import ModuleType
from typing import Any, Protocol

from flatshare.pyworker import config, mapping, metrics, tensors
from flatshare.pyworker.frames import BadFrame, decode_texts, encode_texts
from flatshare.pyworker.requests import (
    FINAL,
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    TritonError,
)
from flatshare.pyworker.tensors import Tensor, TritonModelException

MODULE = "triton_python_backend_utils"
_CONSTANTS = {
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START": 1,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END": 2,
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL": FINAL,
    "TRITONSERVER_REQUEST_RELEASE_ALL": 1,
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE": 2,
    "TRITONSERVER_MEMORY_CPU": 0,
    "TRITONSERVER_MEMORY_GPU": 2,
}


class ModelHost(Protocol):
    """What one model's utilities need of the worker."""

    def call(self, request: InferenceRequest, *, is_decoupled: bool) -> list[InferenceResponse]: ...

    def log(self, level: str, message: str) -> None: ...

    def is_ready(self, name: str, version: str) -> bool: ...

    def metric_changed(self, metric: metrics.Metric) -> None: ...


def module_for(host: ModelHost, shared: mapping.SharedTensors) -> ModuleType:
    """A fresh `triton_python_backend_utils` that speaks for one model."""
    module = ModuleType(MODULE)
    contents: dict[str, Any] = {
        **_CONSTANTS,
        "Tensor": Tensor,
        "InferenceRequest": type("InferenceRequest", (InferenceRequest,), {"host": host}),
        "InferenceResponse": InferenceResponse,
        "InferenceResponseSender": InferenceResponseSender,
        "TritonError": TritonError,
        "TritonModelException": TritonModelException,
        "Logger": _Logger(host),
        "MetricFamily": type("MetricFamily", (metrics.MetricFamily,), {"told": host}),
        "Metric": metrics.Metric,
        "ModelConfig": config.ModelConfig,
        "PreferredMemory": PreferredMemory,
        "get_input_tensor_by_name": get_input_tensor_by_name,
        "get_output_tensor_by_name": get_output_tensor_by_name,
        "get_input_config_by_name": config.get_input_config_by_name,
        "get_output_config_by_name": config.get_output_config_by_name,
        "using_decoupled_model_transaction_policy": config.using_decoupled_model_transaction_policy,
        "triton_to_numpy_type": tensors.triton_to_numpy_type,
        "numpy_to_triton_type": tensors.numpy_to_triton_type,
        "triton_string_to_numpy": tensors.triton_string_to_numpy,
        "serialize_byte_tensor": serialize_byte_tensor,
        "deserialize_bytes_tensor": deserialize_bytes_tensor,
        "is_model_ready": lambda model_name, model_version="": host.is_ready(model_name, model_version),
        "load_model": _refuse_control,
        "unload_model": _refuse_control,
        "map_safetensors": shared.map_safetensors,
    }
    vars(module).update(contents)
    return module


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def serialize_byte_tensor(input_tensor: Any) -> Any:
    """The v2 protocol's bytes of an array of strings; `()` for an empty array and None for other types, as Triton's does."""
    if input_tensor.size == 0:
        return ()
    return encode_texts(input_tensor) if input_tensor.dtype.kind in "OS" else None


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Any:
    try:
        return decode_texts(encoded_tensor)
    except BadFrame as error:
        raise TritonModelException(str(error)) from error


class PreferredMemory:
    """Accepted for compatibility: every tensor here lies in the memory of the host."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class _Logger:
    """`pb_utils.Logger`: messages go to the instance's log, under the model's name."""

    INFO, WARNING, ERROR, VERBOSE = "info", "warning", "error", "debug"

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    def log(self, message: str, level: str = INFO) -> None:
        self._host.log(level, str(message))

    def log_info(self, message: str) -> None:
        self.log(message, self.INFO)

    def log_warn(self, message: str) -> None:
        self.log(message, self.WARNING)

    def log_error(self, message: str) -> None:
        self.log(message, self.ERROR)

    def log_verbose(self, message: str) -> None:
        self.log(message, self.VERBOSE)


def _refuse_control(*_: object, **__: object) -> None:
    raise TritonModelException("a model cannot load or unload others here: the platform decides what is in memory")
