"""The models of `bench packages`: 292 MB of fp32 weights each, loaded and run by the same Python code on every server."""

import json
import os
from pathlib import Path
from textwrap import dedent

import numpy as np

WIDTH, LAYERS, WORDS = 1024, 40, 15_000
"""An embedding of 61 MB at either end and 40 layers of 4.2 MB: 292 MB. The ends are frozen: fine-tunes have them in common."""

CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "score" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "word" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
CODE = '''
    """Embed, forty layers, the best next word. Maps its weights where the backend's utilities offer it, and reads them elsewhere."""

    import os

    import numpy as np
    import torch
    import triton_python_backend_utils as pb_utils

    if hasattr(pb_utils, "map_safetensors"):
        load = pb_utils.map_safetensors
    else:
        from safetensors.numpy import load_file as load


    class TritonPythonModel:
        def initialize(self, args):
            torch.set_num_threads(1)
            path = os.path.join(args["model_repository"], args["model_version"], "model.safetensors")
            self.weights = {name: torch.from_numpy(array) for name, array in load(path).items()}

        def execute(self, requests):
            return [self.answer(pb_utils.get_input_tensor_by_name(request, "ids").as_numpy()) for request in requests]

        def answer(self, ids):
            with torch.no_grad():
                hidden = self.weights["embed"][torch.from_numpy(ids)]
                for layer in range(LAYERS):
                    hidden = hidden + torch.tanh(hidden @ self.weights[f"layer.{layer}"]) * 0.1
                scores, words = (hidden.mean(1) @ self.weights["head"].T).max(-1, keepdim=True)
            return pb_utils.InferenceResponse([pb_utils.Tensor("score", scores.numpy()), pb_utils.Tensor("word", words.numpy())])
'''
VECTOR_CONFIG = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "B" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ECHO_CODE = """
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", work(request.inputs()[0].as_numpy()))]) for request in requests]


    def work(values):
        for _ in range(20):
            values = values * 0.5 + 1
        return values
"""

UNTIDY_CODE = """
    import torch
    import triton_python_backend_utils as pb_utils


    class Trace:
        def __init__(self, hidden):
            self.hidden, self.itself = hidden, self


    class TritonPythonModel:
        def initialize(self, args):
            torch.set_num_threads(1)
            self.layers = [torch.nn.Linear(512, 512) for _ in range(8)]

        def execute(self, requests):
            return [self.answer(request.inputs()[0].as_numpy()) for request in requests]

        def answer(self, values):
            hidden = torch.from_numpy(values).reshape(-1, 512)
            for layer in self.layers:
                hidden = torch.relu(layer(hidden))
            Trace(hidden)
            return pb_utils.InferenceResponse([pb_utils.Tensor("B", hidden.mean(0).detach().numpy())])
"""


def write_models(folder: Path, count: int) -> list[Path]:
    """Repositories of one model each, with weights of their own but for the frozen ends. Those that are there already stay."""
    paths = [folder / f"m{index}" for index in range(count)]
    if all(_is_written(path) for path in paths):
        for path in paths:
            _read_ahead(path)
        return paths
    frozen = np.random.default_rng(0)
    ends = {name: frozen.standard_normal((WORDS, WIDTH), np.float32) * np.float32(0.02) for name in ("embed", "head")}
    return [_write(folder / f"m{index}", ends, index + 1) for index in range(count)]


def let_go(folder: Path) -> None:
    """Take a model's files out of the page cache: they lie in the server's memory or its store by now, and the machine is not large."""
    with (folder / folder.name / "1" / "model.safetensors").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_echo(folder: Path) -> Path:
    """A model whose function takes a few hundredths of a millisecond: what is measured is everything around it."""
    return _model(folder, VECTOR_CONFIG, ECHO_CODE)


def write_untidy(folder: Path) -> Path:
    """A model as its author left it: gradients on, and each answer's tensors held by a cycle that only the collector can free."""
    return _model(folder, VECTOR_CONFIG, UNTIDY_CODE)


def _write(folder: Path, ends: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], seed: int) -> Path:
    own = np.random.default_rng(seed)
    _model(folder, CONFIG, CODE.replace("LAYERS", str(LAYERS)))
    layers = {f"layer.{n}": own.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(0.03) for n in range(LAYERS)}
    tensors = {"embed": ends["embed"], **layers, "head": ends["head"]}
    header: dict[str, object] = {}
    position = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [position, position + tensor.nbytes]}
        position += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / folder.name / "1" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            tensor.tofile(file)
        os.fsync(file.fileno())
    return folder


def _is_written(folder: Path) -> bool:
    weights = folder / folder.name / "1" / "model.safetensors"
    return weights.is_file() and weights.stat().st_size > 4 * (2 * WORDS * WIDTH + LAYERS * WIDTH * WIDTH)


def _read_ahead(folder: Path) -> None:
    """Into the page cache, as if it had just been written. An instance that has to wait for the disk takes that for a lack of memory."""
    with (folder / folder.name / "1" / "model.safetensors").open("rb") as file:
        while file.read(2**24):
            pass


def _model(folder: Path, config: str, code: str) -> Path:
    version = folder / folder.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(config)
    (version / "model.py").write_text(dedent(code))
    return folder
