"""Small Triton packages, written as text: a config and a model."""

from pathlib import Path
from textwrap import dedent

DOUBLE = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            found = [pb_utils.get_input_tensor_by_name(request, "A").as_numpy() for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", values * 2)]) for values in found]
"""


MIXED = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(*(tensor.as_numpy() for tensor in request.inputs())) for request in requests]

        def answer(self, values, texts):
            doubled = pb_utils.Tensor("doubled", values * 2)
            shouted = pb_utils.Tensor("shouted", np.array([text.upper() for text in texts.reshape(-1)], object).reshape(texts.shape))
            return pb_utils.InferenceResponse([doubled, shouted])
"""
"""Numbers and texts."""
MIXED_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "values" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "texts" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "doubled" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "shouted" data_type: TYPE_STRING dims: [ 1 ] } ]
"""

COUNTER = """
    import json
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                sender, count = request.get_response_sender(), int(request.inputs()[0].as_numpy()[0])
                for number in range(abs(count)):
                    values, text = np.array([number], np.int32), np.array([b"%d \\xff" % number], object)
                    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("number", values), pb_utils.Tensor("text", text)]))
                if count < 0:
                    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("below zero")))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
"""Decoupled: counts up to what it is given; a number below zero ends in an error."""
COUNTER_CONFIG = """
backend: "python"
input [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""

NEGATE = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("negated", -request.inputs()[0].as_numpy())]) for request in requests]
"""
NEGATE_CONFIG = """
backend: "python"
input [ { name: "number" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "negated" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
PIPELINE_CONFIG = """
platform: "ensemble"
input [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "piped" model_version: -1 input_map { key: "number" value: "counted" } output_map { key: "negated" value: "number" } },
    {
      model_name: "pipe" model_version: -1 input_map { key: "count" value: "count" }
      output_map { key: "number" value: "counted" } output_map { key: "text" value: "text" }
    }
  ]
}
"""
"""A decoupled step, and one that follows each of its answers."""


def write_pipeline(repository: Path) -> Path:
    """An ensemble `pipeline`, and its steps."""
    write_model(repository, COUNTER, COUNTER_CONFIG, name="pipe")
    write_model(repository, NEGATE, NEGATE_CONFIG, name="piped")
    (repository / "pipeline/1").mkdir(parents=True)
    (repository / "pipeline/1/.keep").touch()
    (repository / "pipeline/config.pbtxt").write_text(PIPELINE_CONFIG)
    return repository


def config(*, inputs: str = "A TYPE_FP32 -1", outputs: str = "B TYPE_FP32 -1", more: str = 'backend: "python" max_batch_size: 4') -> str:
    """`inputs` and `outputs` as `NAME TYPE dims`, several by commas."""
    lines = [more]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for one in filter(None, tensors.split(",")):
            name, data_type, *dims = one.split()
            lines.append(f'{kind} [{{ name: "{name}" data_type: {data_type} dims: [{", ".join(dims)}] }}]')
    return "\n".join(lines)


def write_model(folder: Path, code: str = DOUBLE, settings: str | None = None, version: int = 1, *, name: str = "") -> Path:
    """One Python model in a repository of its own: `folder` holds the model's folder, named like it."""
    model = folder / (name or folder.name)
    (model / str(version)).mkdir(parents=True)
    (model / "config.pbtxt").write_text(config() if settings is None else settings)
    (model / str(version) / "model.py").write_text(dedent(code))
    return folder
