"""How `flatshare invoke` shows a model's answer to somebody who reads it."""

from collections.abc import Iterator
from typing import Any

import orjson

_MOST_LABELS = 3


def lines_of(answer: dict[str, Any]) -> Iterator[str]:
    """A line for each text, passage or labelled piece; answers of another shape as they are."""
    if "embeddings" in answer:
        yield from (_vector(row) for row in answer["embeddings"])
    elif "predictions" in answer:
        for rows in answer["predictions"]:
            yield from _pieces(rows) if rows and "piece" in rows[0] else [_labels(rows)]
    elif "results" in answer:
        yield from (f"{row['score']:.4f}  passage {row['index']}" for row in answer["results"])
    elif "texts" in answer:
        yield from answer["texts"]
    else:
        yield orjson.dumps(answer).decode()


def _vector(row: list[float]) -> str:
    return f"[{', '.join(f'{value:+.4f}' for value in row[:6])}, … {len(row)} numbers]"


def _labels(rows: list[dict[str, Any]]) -> str:
    shown = "  ".join(f"{row['label']} {row['score']:.4f}" for row in rows[:_MOST_LABELS])
    return shown + (f"  … {len(rows)} labels" if len(rows) > _MOST_LABELS else "")


def _pieces(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        place = f"{row['begin']}-{row['end']}" if "begin" in row else "?"
        yield f"{row['piece']:<16} {place:<9} {row['label']} {row['score']:.4f}"
