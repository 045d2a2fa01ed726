"""Checkpoints without a generated graph: the ONNX file that lies in them, or one that torch exports here and now."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.core.spec import TOKENS_PER_RUN
from flatshare.package import exporting, onnx_files
from flatshare.package.checkpoint import token_limit
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.heads import SentenceHead
from flatshare.package.onnx_files import SplitGraph
from flatshare.package.purpose import Purpose, read_purpose
from flatshare.package.sentence import transformer_folder
from flatshare.package.weight_files import read_module_weights

ONNX_PLACES = ("model.onnx", "onnx/model.onnx")
_EXPORT_TIMEOUT_S = 900.0
_HIDDEN_NAMES = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
_POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")
_USUAL_TOKENS = 512  # for models whose positions have no end
_CLASSES = {
    Task.EMBEDDING: "AutoModel",
    Task.CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.RANKING: "AutoModelForSequenceClassification",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
}
_POOLED = "sentence_embedding"
_OUTPUTS = {Task.EMBEDDING: (_POOLED, "last_hidden_state", "token_embeddings")}


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """Everything of the checkpoint but its tokenizer."""

    folder: Folder
    family: str
    purpose: Purpose
    split: SplitGraph
    vocabulary: int
    width: int
    max_tokens: int
    workspace_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Whole:
    """A graph as it came, weights inside."""

    model: onnx.ModelProto
    output: str
    note: str


def read_foreign(path: Path, limits: StoreLimits, reason: UnsupportedModel | None) -> ForeignModel:
    """`reason` says why there is no generated graph. Raises it with the way out if there is no ONNX file and no torch either."""
    top = Folder(path, limits)
    modules = top.optional_list("modules.json")
    folder = transformer_folder(top, modules)
    config = Config(folder.required_json("config.json"))
    if not isinstance(config.get("model_type"), str):
        raise reason or BadPackage("config.json has no model_type")
    hidden, vocabulary = config.size(_given(config, _HIDDEN_NAMES)), config.size("vocab_size")
    purpose = read_purpose(top, modules, config, hidden)
    place = next((name for name in ONNX_PLACES if folder.has(name)), None)
    whole = _exported(folder, purpose, reason) if place is None else _found(folder.path / place, place, purpose)
    model, extra = _headed(whole, purpose, hidden, top)
    probe = onnx_files.sample(2, 7, vocabulary)
    original = bytes(model.SerializeToString())
    seen = onnx_files.run(original, {**extra, **probe})
    lean = onnx_files.split(onnx_files.fused(model), seen.shape)
    split = SplitGraph(lean.model, {**lean.weights, **extra}, lean.kept_bytes)
    positions = config.size(_given(config, _POSITION_NAMES), default=_USUAL_TOKENS, least=8)
    longest = _longest(split, positions, config, vocabulary)
    _check_equal(original, split, vocabulary, longest)
    max_tokens = token_limit(folder, purpose, longest)
    kept = (f"{split.kept_bytes} bytes of weights stay in the graph and are private memory",) if split.kept_bytes > 2**20 else ()
    return ForeignModel(
        folder=folder,
        family=str(config.get("model_type"))[:64],
        purpose=purpose,
        split=split,
        vocabulary=vocabulary,
        width=seen.shape[-1],
        max_tokens=max_tokens,
        workspace_bytes=_workspace_bytes(split, max_tokens, vocabulary),
        notes=(whole.note, *kept),
    )


def _given(config: Config, names: tuple[str, ...]) -> str:
    return next((name for name in names if config.get(name) is not None), names[0])


def _found(path: Path, place: str, purpose: Purpose) -> _Whole:
    """The ONNX file of the checkpoint, and which of its outputs answers."""
    model = onnx_files.read_onnx(path)
    names = [output.name for output in model.graph.output]
    wanted: tuple[str, ...] = _OUTPUTS.get(purpose.task, ("logits",))
    if isinstance(purpose.head, SentenceHead) and not purpose.head.is_prompt_pooled:
        wanted = tuple(name for name in wanted if name != _POOLED)  # it is made of the prompt's tokens too
        names = [name for name in names if name != _POOLED]
    output = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if output is None:
        raise UnsupportedModel(f"{place} gives {', '.join(names)[:128] or _POOLED}: a model for {purpose.task} needs {' or '.join(wanted)}")
    return _Whole(onnx_files.only_output(model, output), output, f"the graph is the checkpoint's {place}")


def _exported(folder: Folder, purpose: Purpose, reason: UnsupportedModel | None) -> _Whole:
    """Exported by torch in a process of its own, which has compared it with the model. Raises UnsupportedModel."""
    why = f"{reason}. " if reason is not None else ""
    if find_spec("torch") is None or find_spec("transformers") is None or find_spec("onnxscript") is None:
        raise UnsupportedModel(
            f"{why}Other models are exported to ONNX: pip install 'flatshare[torch]' where the instance runs, or add model.onnx"
        )
    with tempfile.TemporaryDirectory() as out:
        report = _run_export(Path(out), folder.path, _CLASSES[purpose.task])
        if "error" in report:
            raise UnsupportedModel(f"{why}Its export to ONNX failed: {report['error']} (a model.onnx beside it would be taken instead)")
        if not report["difference"] <= onnx_files.CLOSE:
            raise UnsupportedModel(
                f"{why}Its exported graph differs from the model by {report['difference']:.1e}, more than {onnx_files.CLOSE:.0e}"
            )
        model = onnx_files.read_onnx(Path(out) / exporting.GRAPH)
    return _Whole(model, "output", f"exported from torch, which it differs from by {report['difference']:.1e}")


def _run_export(out: Path, checkpoint: Path, head: str) -> dict[str, Any]:
    job = out / "job.json"
    job.write_bytes(orjson.dumps({"checkpoint": str(checkpoint.resolve()), "head": head}))
    command = [sys.executable, "-m", exporting.__name__, str(job)]
    try:
        ended = subprocess.run(command, check=False, capture_output=True, timeout=_EXPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {_EXPORT_TIMEOUT_S:.0f} s"}
    report = out / exporting.REPORT
    if not report.is_file():
        return {"error": f"its process ended with status {ended.returncode} (killed for its memory, if negative)"}
    found: dict[str, Any] = orjson.loads(report.read_bytes())
    return found


def _headed(whole: _Whole, purpose: Purpose, hidden: int, top: Folder) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]]]:
    """The graph with a sentence encoder's pooling behind it, if it has not pooled already; and the weights of its modules."""
    if not isinstance(purpose.head, SentenceHead) or whole.output == _POOLED:
        return whole.model, {}
    weights = read_module_weights(top, purpose.sentence.weight_folders)
    model = onnx_files.with_head(whole.model, whole.output, purpose.head, hidden)
    constants = {tensor.name for tensor in model.graph.initializer}
    wanted = [value.name for value in model.graph.input if value.name not in onnx_files.RUN_INPUTS and value.name not in constants]
    found = {}
    for name in wanted:
        tensor = weights.find([name])
        if tensor is None:
            raise BadPackage(f"the checkpoint lacks the tensor '{name}', which modules.json asks for")
        found[name] = tensor.float32()
    return model, found


def _longest(split: SplitGraph, positions: int, config: Config, vocabulary: int) -> int:
    """How many tokens the graph takes: all of its positions, or fewer where they begin behind the padding (as fairseq counts)."""
    padding = config.get("pad_token_id")
    fewer = positions - 1 - (padding if type(padding) is int and 0 <= padding < positions - 2 else 1)
    try:
        onnx_files.run(split.model, {**split.weights, **onnx_files.sample(1, positions, vocabulary)})
    except UnsupportedModel:
        onnx_files.run(split.model, {**split.weights, **onnx_files.sample(1, fewer, vocabulary)})
        return fewer
    return positions


def _check_equal(original: bytes, split: SplitGraph, vocabulary: int, longest: int) -> None:
    """The fused and split graph must answer as the one that it was made of."""
    for texts, tokens in ((1, 2), (2, 7), (3, min(33, longest))):
        feeds = {**split.weights, **onnx_files.sample(texts, tokens, vocabulary)}
        found = onnx_files.difference(onnx_files.run(split.model, feeds), onnx_files.run(original, feeds))
        if not found <= onnx_files.CLOSE:
            raise UnsupportedModel(f"ONNX Runtime's fused graph differs from the original by {found:.1e}, more than {onnx_files.CLOSE:.0e}")


def _workspace_bytes(split: SplitGraph, tokens: int, vocabulary: int) -> int:
    """What one run of as many tokens as a run may have takes beside the weights, as the kernel counts it here."""
    rows = max(1, TOKENS_PER_RUN // tokens)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    onnx_files.run(split.model, {**split.weights, **onnx_files.sample(rows, tokens, vocabulary)})
    return max(_resident_bytes("VmHWM") - before, 2**20)


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
