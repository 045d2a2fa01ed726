"""The export of one checkpoint, run as a process of its own: `python -m flatshare.package.exporting JOB.json`.

It alone imports torch and transformers. What it found out goes to REPORT.json beside the graph; what went wrong to its `error`.
"""

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

REPORT, GRAPH = "report.json", "model.onnx"
_SEGMENTS = "token_type_ids"
INPUTS = ("input_ids", "attention_mask", _SEGMENTS)
_SHAPES = ((2, 7), (1, 3), (3, 16), (1, 40))  # the first is what the exporter sees
_OPSET = 18
_NO_TOKEN = -1
_ENCODER_HALVES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel", "longt5": "LongT5EncoderModel"}


def main(job_path: Path) -> int:
    job = orjson.loads(job_path.read_bytes())
    folder = job_path.parent
    try:
        report = _export(Path(job["checkpoint"]), job["head"], folder / GRAPH)
    except Exception as error:  # noqa: BLE001  # the process's main: whatever torch and transformers raise is the answer
        report = {"error": _reason(error)}
    (folder / REPORT).write_bytes(orjson.dumps(report))
    return 0


def _export(checkpoint: Path, head: str, graph: Path) -> dict[str, Any]:
    """Write the graph, run it beside the model, and report what they are and how far they differ."""
    import torch  # noqa: PLC0415  # only here
    import transformers  # noqa: PLC0415

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    model = _kind(transformers, head, checkpoint).from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    words = model.config.get_text_config()
    if getattr(words, "pad_token_id", None) is None:
        words.pad_token_id = _NO_TOKEN  # decoders refuse several texts without one, though nothing is padded here
    vocabulary, end = len(model.get_input_embeddings().weight), _end_token(model)
    names = _input_names(model, checkpoint, _feeds(_SHAPES[0], vocabulary, INPUTS, end))
    original = _module(model, names)
    module = original if end is None else _of_end_token(model, names, end)
    feeds = [_feeds(shape, vocabulary, names, end) for shape in _shapes(model.config)]
    _write_graph(module, feeds[0], graph)
    return {"vocabulary": vocabulary, "difference": max(_difference(original, graph, feed) for feed in feeds)}


def _input_names(model: Any, checkpoint: Path, feed: dict[str, NDArray[np.int64]]) -> list[str]:
    """What transformers gives the model for a text. To GPT-2, segments are words: it is given none, unless its tokenizer makes them."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    names = [name for name in INPUTS if name in inspect.signature(model.forward).parameters]
    if _SEGMENTS not in names:
        return names
    without = [name for name in names if name != _SEGMENTS]
    with torch.no_grad():
        a, b = (_module(model, some)(*(torch.from_numpy(feed[name]) for name in some)) for some in (names, without))
    if torch.equal(a, b):
        return names
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    return names if _SEGMENTS in tokenizer.model_input_names else without


def _write_graph(module: Any, feed: dict[str, NDArray[np.int64]], graph: Path) -> None:
    import torch  # noqa: PLC0415

    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in feed}
    program = torch.onnx.export(
        module,
        tuple(torch.from_numpy(array) for array in feed.values()),
        input_names=list(feed),
        output_names=["output"],
        dynamic_shapes=(tuple(dynamic.values()),),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(graph)


def _kind(transformers: Any, head: str, checkpoint: Path) -> Any:
    """The class to load. Of T5 and its kin an encoder is what sentence-transformers takes: AutoModel would want a decoder's tokens."""
    if head == "AutoModel":
        config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        if config.model_type in _ENCODER_HALVES:
            return getattr(transformers, _ENCODER_HALVES[config.model_type])
    return getattr(transformers, head)


def _reason(error: BaseException) -> str:
    """In one line. The exporter wraps what went wrong into advice for people who develop it."""
    while type(error).__module__.startswith("torch.onnx.") and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _shapes(config: Any) -> Iterator[tuple[int, int]]:
    """Batches that the model has positions for; some say -1 if they have no end."""
    most = getattr(config, "max_position_embeddings", None)
    most = most if isinstance(most, int) and most > 0 else 2 + max(tokens for _, tokens in _SHAPES)
    yield from (shape for shape in _SHAPES if shape[1] + 2 <= most)  # two behind the padding, as fairseq counts


def _module(model: Any, names: Sequence[str]) -> Any:
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


def _end_token(model: Any) -> int | None:
    """The token whose last place in a text decides, of classifiers of BART's and T5's kind."""
    is_of_the_kind = getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "classification_head")
    return int(model.config.eos_token_id) if is_of_the_kind else None


def _of_end_token(model: Any, names: Sequence[str], end: int) -> Any:
    """The same without what ties texts together: transformers picks all end tokens of a batch at once, and wants as many in each text."""
    import torch  # noqa: PLC0415

    class OfEndToken(torch.nn.Module):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            features = dict(zip(names, inputs, strict=True))
            ids = features["input_ids"]
            if hasattr(self.model, "_shift_right"):
                features["decoder_input_ids"] = self.model._shift_right(ids)
            vectors = self.model.base_model(**features)[0]
            place = ((ids == end) * torch.arange(ids.shape[1])).amax(1)
            return self.model.classification_head(vectors.gather(1, place[:, None, None].expand(-1, 1, vectors.shape[2])).squeeze(1))

    return OfEndToken().eval()


def _feeds(shape: tuple[int, int], vocabulary: int, names: Sequence[str], end: int | None) -> dict[str, NDArray[np.int64]]:
    ids = np.random.default_rng(shape).integers(vocabulary // 8, vocabulary, shape)  # special tokens lie at the beginning
    if end is not None:
        ids = np.where(ids == end, vocabulary // 8 + (end == vocabulary // 8), ids)
        ids[:, -1] = end
    feeds = {"input_ids": ids, "attention_mask": np.ones(shape, np.int64), _SEGMENTS: np.zeros(shape, np.int64)}
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
