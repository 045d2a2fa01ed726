"""The export of one checkpoint, run as a process of its own: `python -m flatshare.package.exporting JOB.json`.

It alone imports torch and transformers. What it found out goes to REPORT.json beside the graph; what went wrong to its `error`.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

REPORT, GRAPH = "report.json", "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_SHAPES = ((2, 7), (1, 3), (3, 16), (1, 40))  # the first is what the exporter sees
_OPSET = 18


def main(job_path: Path) -> int:
    job = orjson.loads(job_path.read_bytes())
    folder = job_path.parent
    try:
        report = _export(Path(job["checkpoint"]), job["head"], folder / GRAPH)
    except Exception as error:  # noqa: BLE001  # the process's main: whatever torch and transformers raise is the answer
        report = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:400]}"}
    (folder / REPORT).write_bytes(orjson.dumps(report))
    return 0


def _export(checkpoint: Path, head: str, graph: Path) -> dict[str, Any]:
    """Write the graph, run it beside the model, and report what they are and how far they differ."""
    import torch  # noqa: PLC0415  # only here
    import transformers  # noqa: PLC0415

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, head)
    model = kind.from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    module = _module(model, [name for name in INPUTS if name in inspect.signature(model.forward).parameters])
    vocabulary = model.get_input_embeddings().num_embeddings
    feeds = [_feeds(shape, vocabulary, module.names) for shape in _shapes(model.config)]
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in module.names}
    program = torch.onnx.export(
        module,
        tuple(torch.from_numpy(feeds[0][name]) for name in module.names),
        input_names=list(module.names),
        output_names=["output"],
        dynamic_shapes=(tuple(dynamic.values()),),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(graph)
    return {"vocabulary": vocabulary, "difference": max(_difference(module, graph, feed) for feed in feeds)}


def _shapes(config: Any) -> Iterator[tuple[int, int]]:
    """Batches that the model has positions for."""
    most = getattr(config, "max_position_embeddings", None) or max(tokens for _, tokens in _SHAPES)
    yield from (shape for shape in _SHAPES if shape[1] + 2 <= most)  # two behind the padding, as fairseq counts


def _module(model: Any, names: list[str]) -> Any:
    """The model with nothing but tensors in and the one tensor out."""
    import torch  # noqa: PLC0415

    class Module(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, so mypy knows nothing of it
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.names = tuple(names)

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(self.names, inputs, strict=True)))[0]

    return Module().eval()


def _feeds(shape: tuple[int, int], vocabulary: int, names: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    random = np.random.default_rng(shape)
    feeds = {"input_ids": random.integers(vocabulary // 8, vocabulary, shape)}  # special tokens lie at the beginning
    feeds |= {"attention_mask": np.ones(shape, np.int64), "token_type_ids": np.zeros(shape, np.int64)}
    return {name: feeds[name] for name in names}


def _difference(module: Any, graph: Path, feeds: dict[str, NDArray[np.int64]]) -> float:
    """The largest difference between graph and model, relative to the largest number where that is beyond 1."""
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    [actual] = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, feeds)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(feeds[name]) for name in module.names)).numpy()
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
