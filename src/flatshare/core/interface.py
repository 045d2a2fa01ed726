"""What a text model takes and gives, by its task: the engine answers by it, and the importer checks a package's configs against it."""

from collections.abc import Sequence
from functools import lru_cache

from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.core.spec import ModelManifest

PLATFORM = "flatshare_mapped"
TEXT, TEXT_PAIR, QUERY, PASSAGES = "text", "text_pair", "query", "passages"
IDS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"
_TEXT_INPUT = TensorInfo(TEXT, "BYTES", (-1,), is_optional=True)
_ID_INPUTS = tuple(TensorInfo(name, "INT64", (-1, -1), is_optional=True) for name in (IDS, MASK, SEGMENTS))
ONE_ROW_EACH = frozenset({Task.EMBEDDING, Task.CLASSIFICATION})
"""Tasks that answer one row for each text."""


def signature_of(manifest: ModelManifest) -> Signature:
    """Of an encoder."""
    if manifest.task is Task.EMBEDDING:
        return embedding(manifest.width)
    if manifest.task is Task.CLASSIFICATION:
        return classification(len(manifest.labels))
    if manifest.task is Task.TOKEN_CLASSIFICATION:
        return token_classification(len(manifest.labels))
    assert manifest.task is Task.RANKING, f"no encoder has the task {manifest.task}. This is a bug."
    return ranking()


@lru_cache(maxsize=64)
def embedding(width: int) -> Signature:
    return _signature(Task.EMBEDDING, (_TEXT_INPUT,), (TensorInfo("embedding", "FP32", (-1, width)),))


@lru_cache(maxsize=64)
def classification(labels: int) -> Signature:
    pair = TensorInfo(TEXT_PAIR, "BYTES", (-1,), is_optional=True)
    kinds = (("label", "BYTES"), ("score", "FP32"), ("logits", "FP32"))
    return _signature(Task.CLASSIFICATION, (_TEXT_INPUT, pair), [TensorInfo(name, kind, (-1, labels)) for name, kind in kinds])


@lru_cache(maxsize=64)
def token_classification(labels: int) -> Signature:
    """One row for each token."""
    texts = ("label", "piece")
    numbers = ("text_index", "begin", "end")
    outputs = (
        *(TensorInfo(name, "BYTES", (-1,)) for name in texts),
        TensorInfo("score", "FP32", (-1,)),
        *(TensorInfo(name, "INT64", (-1,)) for name in numbers),
        TensorInfo("logits", "FP32", (-1, labels)),
    )
    return _signature(Task.TOKEN_CLASSIFICATION, (_TEXT_INPUT,), outputs)


@lru_cache(maxsize=1)
def ranking() -> Signature:
    """One score for each passage."""
    texts = tuple(TensorInfo(name, "BYTES", (size,), is_optional=True) for name, size in ((QUERY, 1), (PASSAGES, -1)))
    return _signature(Task.RANKING, texts, (TensorInfo("score", "FP32", (-1,)), TensorInfo("logits", "FP32", (-1,))))


def _signature(task: Task, texts: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> Signature:
    """It takes `texts`, or token ids in place of them."""
    return Signature(task, PLATFORM, (*texts, *_ID_INPUTS), tuple(outputs))
