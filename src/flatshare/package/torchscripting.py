"""A checkpoint as TorchScript for Triton's PyTorch backend, traced in a process of its own and compared with the model.

`python -m flatshare.package.torchscripting JOB.json` alone imports torch and transformers. The traced model takes token ids and mask,
both int64 [texts, tokens], and gives one float32 tensor: sentence vectors, or the logits of a classifier or ranker.
"""

import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.heads import Normalize, SentenceHead
from flatshare.package.purpose import read_purpose
from flatshare.package.sentence import transformer_folder

CLOSE = 1e-5
"""The largest difference between traced model and model, relative to the largest number where that is beyond 1."""
MODEL = "model.pt"
_REPORT = "report.json"
_SHAPES = ((2, 7), (1, 2), (3, 16), (1, 33))  # the first is what is traced
_TIMEOUT_S = 900.0
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Traced:
    """What was written, and how far it is from the model."""

    model: Path
    difference: float
    width: int


def write_torchscript(checkpoint: Path, out: Path, limits: StoreLimits) -> Traced:
    """Write `model.pt` and copies of the tokenizer's files to the new folder `out`, which appears only if traced model and model agree.

    Raises BadPackage for a checkpoint that contradicts itself, UnsupportedModel for what cannot be traced, or without torch.
    """
    job = _job(checkpoint, limits)
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise UnsupportedModel("a conversion to TorchScript needs torch: pip install 'flatshare[torch]'")
    if out.exists():
        raise BadPackage(f"'{out}' exists: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        fresh = Path(name) / "made"
        fresh.mkdir()
        report = _run(fresh, job)
        if "error" in report:
            raise UnsupportedModel(f"'{checkpoint}' cannot be traced: {report['error']}")
        if not report["difference"] <= CLOSE:
            raise UnsupportedModel(f"the traced model differs from the model by {report['difference']:.1e}, more than {CLOSE:.0e}")
        for file in _BESIDE:
            if (Path(job["checkpoint"]) / file).is_file():
                shutil.copyfile(Path(job["checkpoint"]) / file, fresh / file)
        fresh.rename(out)
    return Traced(out / MODEL, report["difference"], report["width"])


def _job(checkpoint: Path, limits: StoreLimits) -> dict[str, Any]:
    """What the process is to do, from the checkpoint's own configs."""
    top = Folder(checkpoint, limits)
    modules = top.optional_list("modules.json")
    folder = transformer_folder(top, modules)
    config = Config(folder.required_json("config.json"))
    purpose = read_purpose(top, modules, config, config.size("hidden_size", default=1))
    job: dict[str, Any] = {"checkpoint": str(folder.path.resolve())}
    if isinstance(purpose.head, SentenceHead):
        head = purpose.head
        others = [step for step in head.steps if not isinstance(step, Normalize)]
        if head.poolings not in {("mean",), ("cls",)} or others:
            raise UnsupportedModel("only encoders with mean or cls pooling, normalised or not, are converted: write the others by hand")
        if not head.is_prompt_pooled:
            raise UnsupportedModel("an encoder that leaves its prompt out of the pooling (include_prompt false) is not converted")
        return job | {"head": "AutoModel", "pooling": head.poolings[0], "is_normalized": head.is_normalized}
    if purpose.task not in {Task.CLASSIFICATION, Task.RANKING}:
        raise UnsupportedModel(f"models for {purpose.task.value} are not converted to TorchScript")
    return job | {"head": "AutoModelForSequenceClassification", "pooling": "", "is_normalized": False}


def _run(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    path = folder.parent / "job.json"
    path.write_bytes(orjson.dumps(job | {"model": str(folder / MODEL)}))
    try:
        ended = subprocess.run([sys.executable, "-m", __name__, str(path)], check=False, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {_TIMEOUT_S:.0f} s"}
    report = folder.parent / _REPORT
    if not report.is_file():
        return {"error": f"its process ended with status {ended.returncode} (killed for its memory, if negative)"}
    found: dict[str, Any] = orjson.loads(report.read_bytes())
    return found


def main(job_path: Path) -> int:
    try:
        report = _trace(orjson.loads(job_path.read_bytes()))
    except Exception as error:  # noqa: BLE001  # the process's main: whatever torch and transformers raise is the answer
        report = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:400]}"}
    (job_path.parent / _REPORT).write_bytes(orjson.dumps(report))
    return 0


def _trace(job: dict[str, Any]) -> dict[str, Any]:
    """Trace, save, load what was saved, and compare that with the model on shapes that were not traced."""
    import torch  # noqa: PLC0415  # only here
    import transformers  # noqa: PLC0415

    warnings.simplefilter("ignore")  # torch.jit is deprecated, and what Triton's PyTorch backend takes
    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, job["head"])
    options = {"local_files_only": True, "trust_remote_code": False, "attn_implementation": "eager"}
    model = kind.from_pretrained(job["checkpoint"], dtype=torch.float32, **options).eval()
    module = _module(model, job["pooling"], is_normalized=job["is_normalized"])
    vocabulary = model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(module, _feeds(_SHAPES[0], vocabulary), check_trace=False))
        traced.save(job["model"])
        loaded = torch.jit.load(job["model"])
        pairs = [(module(*feeds), loaded(*feeds)) for shape in _SHAPES for feeds in [_feeds(shape, vocabulary)]]
    difference = max(float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)) for wanted, found in pairs)
    return {"difference": difference, "width": pairs[0][0].shape[1]}


def _module(model: Any, pooling: str, *, is_normalized: bool) -> Any:
    """The model with ids and mask in, and one tensor out."""
    import torch  # noqa: PLC0415

    class Module(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, so mypy knows nothing of it
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            found = self.model(input_ids=ids, attention_mask=mask)[0]
            if pooling == "mean":
                weight = mask.unsqueeze(-1).to(found.dtype)
                found = (found * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            elif pooling == "cls":
                found = found[:, 0]
            return torch.nn.functional.normalize(found, dim=-1) if is_normalized else found

    return Module().eval()


def _feeds(shape: tuple[int, int], vocabulary: int) -> tuple[Any, Any]:
    """Random tokens; the last text is shorter than the others, so that the mask counts."""
    import torch  # noqa: PLC0415

    random = np.random.default_rng(shape)
    ids, mask = random.integers(vocabulary // 8, vocabulary, shape), np.ones(shape, np.int64)
    if shape[0] > 1:
        mask[-1, shape[1] // 2 :] = 0
    return torch.from_numpy(ids), torch.from_numpy(mask)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
