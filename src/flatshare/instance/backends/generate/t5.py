"""Encoder-decoder models: the text is read once, at once, and each step looks back at it and at what was written."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.generate.network import MAX_ROWS, Logits, Network, Prompt, Steps
from flatshare.instance.backends.generate.rows import Snapshot
from flatshare.instance.backends.generate.session import GraphSession, Weights

_MOST_TOGETHER = 512
"""Tokens that are read in one run, filled up to the longest text: what others may be kept waiting for."""
_MAX_FIRST_BY_STEP = 8  # so many tokens more than a session has are cheaper one by one than the text once more


class T5Network(Network):
    def __init__(self, spec: GenerationSpec, prefill: GraphSession, steps: Steps, weights: Weights) -> None:
        super().__init__(spec, steps)
        self._prefill = prefill.bind(weights)
        self._reads_several = "spread" in prefill.inputs  # graphs from before texts were read together stay in stores
        parts = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
        self._own_names = tuple(f"self.{part}" for part in parts)
        self._text_names = tuple(f"text.{part}" for part in parts)
        self._text_lengths = np.zeros(MAX_ROWS, np.int32)
        self._last: dict[str, NDArray[np.float32]] = {}
        self._unread: dict[int, Prompt] = {}
        self._kept_text: dict[int, tuple[int, ...]] = {}

    def begin(self, row: int, prompt: Prompt, known: Snapshot | None) -> int:
        """A session helps if its text is the same: then only what the answer begins with may have grown."""
        self._unread[row] = prompt
        self._lengths[row] = 0
        reused = _reused(prompt, known)
        if known is not None and reused:
            for name, values in known.tensors.items():
                self.rows.write(row, name, values[:, : reused - len(prompt.text)] if name.startswith("self.") else values)
            self._lengths[row] = reused - len(prompt.text)
            self._begin_text(row, len(prompt.text))
        return reused

    def can_read_together(self, prompts: Sequence[Prompt]) -> bool:
        """Short texts whose answers begin with equally many tokens."""
        is_short = len(prompts) * max(len(prompt.text) for prompt in prompts) <= _MOST_TOGETHER
        return len(prompts) == 1 or (self._reads_several and is_short and len({len(prompt.first) for prompt in prompts}) == 1)

    def read(self, rows: Sequence[int]) -> Logits | None:
        read, prompt = int(self._lengths[rows[0]]), self._unread[rows[0]]
        logits = self._step_alone(rows[0], prompt.first[read]) if read else self._read_all(rows)
        if self._lengths[rows[0]] < len(prompt.first):
            return None
        for row in rows:
            del self._unread[row]
        return logits

    def bytes_of(self, prompt: Prompt, new_tokens: int) -> int:
        return 4 * 2 * self._spec.layers * self._spec.kv_heads * self._spec.head_size * (prompt.tokens + new_tokens)

    def copy(self, source: int, target: int) -> None:
        self.rows.copy(source, target, self._all_lengths(source))
        self._lengths[target] = self._lengths[source]
        self._begin_text(target, int(self._text_lengths[source]))
        if source in self._unread:
            self._unread[target] = self._unread[source]

    def snapshot(self, row: int, tokens: Sequence[int]) -> Snapshot:
        read = int(self._text_lengths[row] + self._lengths[row])
        return Snapshot(tuple(tokens[:read]), self.rows.copied(row, self._all_lengths(row)))

    def release(self, row: int) -> None:
        super().release(row)
        self._unread.pop(row, None)

    def rest(self) -> None:
        super().rest()
        self._prefill.forget()
        self._last = {}

    def _read_all(self, rows: Sequence[int]) -> Logits:
        """The texts, and what each answer begins with, in one run."""
        spec, prompts = self._spec, [self._unread[row] for row in rows]
        first, longest = len(prompts[0].first), max(len(prompt.text) for prompt in prompts)
        tokens = dict.fromkeys(self._own_names, first) | dict.fromkeys(self._text_names, longest)
        outputs = {name: np.empty((len(rows), spec.kv_heads, count, spec.head_size), np.float32) for name, count in tokens.items()}
        logits = np.empty((len(rows), spec.vocabulary), np.float32)
        self._bind_texts([prompt.text for prompt in prompts], longest)
        self._prefill.input("decoder_ids", np.array([prompt.first for prompt in prompts], np.int64))
        self._prefill.input("decoder_buckets", backwards(np.arange(first), first, spec.buckets, spec.furthest))
        for name, array in outputs.items():
            self._prefill.output(f"present.{name}", array)
        self._prefill.output("logits", logits)
        self._prefill.run()
        self._prefill.forget()  # the library would hold the keys and values a second time
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            for name, array in outputs.items():
                self.rows.write(row, name, array[index] if name in self._own_names else array[index, :, : len(prompt.text)])
            self._lengths[row] = first
            self._begin_text(row, len(prompt.text))
        return logits

    def _bind_texts(self, texts: Sequence[tuple[int, ...]], longest: int) -> None:
        """The texts one behind the other, and where each token lies when they lie side by side.

        |a a a|b|c c|   →   a a a   b . .   c c .
        """
        self._prefill.input("input_ids", np.array([[token for text in texts for token in text]], np.int64))
        self._prefill.input("buckets", both_ways(longest, self._spec.buckets, self._spec.furthest))
        if not self._reads_several:
            return
        lengths = np.array([len(text) for text in texts])
        is_text = np.arange(longest)[None, :] < lengths[:, None]
        spread = np.zeros((len(texts), longest), np.int64)
        spread[is_text] = np.arange(lengths.sum())
        self._prefill.input("spread", spread)
        self._prefill.input("gathered", np.flatnonzero(is_text).astype(np.int64))
        self._prefill.input("text_mask", is_text.astype(np.int32))

    def _step_alone(self, row: int, token: int) -> Logits:
        """One token of one row; the other rows of the batch do not move."""
        self._step = self._steps.single
        for name in (*self._own_names, *self._text_names):
            self._step.cache(name, self.rows.tensors[name][row : row + 1])
        for name in self._text_names:
            self._step.input(f"last.{name}", self._last[name][row : row + 1])
        self._bound = 0
        logits = np.empty((1, self._spec.vocabulary), np.float32)
        self._bind_lengths(np.array([[token]], np.int64), slice(row, row + 1))
        self._step.output("logits", logits)
        self._step.run()
        self._lengths[row] += 1
        return logits

    def _begin_text(self, row: int, length: int) -> None:
        """The step appends the text's last token anew each time, at the place where it is: GroupQueryAttention always appends one."""
        self._text_lengths[row] = length
        if not self._last:
            width = self._spec.kv_heads * self._spec.head_size
            self._last = {name: np.zeros((MAX_ROWS, 1, width), np.float32) for name in self._text_names}
        for name in self._text_names:
            self._last[name][row, 0] = self.rows.tensors[name][row, :, length - 1].reshape(-1)

    def _all_lengths(self, row: int) -> dict[str, int]:
        own, text = int(self._lengths[row]), int(self._text_lengths[row])
        return dict.fromkeys(self._own_names, own) | dict.fromkeys(self._text_names, text)

    def _row_shapes(self, capacity: int) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys((*self._own_names, *self._text_names), (self._spec.kv_heads, capacity, self._spec.head_size))

    def _bind_rows(self, count: int) -> None:
        for name in (*self._own_names, *self._text_names):
            self._step.cache(name, self.rows.tensors[name][:count])
        for name in self._text_names:
            self._step.input(f"last.{name}", self._last[name][:count])

    def _bind_step(self, tokens: NDArray[np.int64]) -> None:
        self._bind_lengths(tokens, slice(0, len(tokens)))

    def _bind_lengths(self, tokens: NDArray[np.int64], rows: slice) -> None:
        lengths, texts = self._lengths[rows], self._text_lengths[rows]
        longest = int(lengths.max()) + 1
        buckets = backwards(lengths, longest, self._spec.buckets, self._spec.furthest)
        self._step.input("input_ids", tokens)
        self._step.input("last_positions", lengths.copy())
        self._step.input("longest", np.array([longest], np.int32))
        self._step.input("text_last_positions", texts - np.int32(1))
        self._step.input("text_longest", np.array([texts.max()], np.int32))
        self._step.input("buckets", buckets[:, None, :])


def _reused(prompt: Prompt, known: Snapshot | None) -> int:
    """Tokens that a session spares: none, unless the text is the same and the answer's beginning goes on where it was."""
    if known is None or known.tokens[: len(prompt.text)] != prompt.text:
        return 0
    written = known.tokens[len(prompt.text) :]
    same = 0
    while same < min(len(written), len(prompt.first) - 1) and written[same] == prompt.first[same]:
        same += 1
    return len(prompt.text) + same if same and len(prompt.first) - same <= _MAX_FIRST_BY_STEP else 0


@lru_cache(maxsize=8)
def _distance_buckets(furthest_back: int, furthest_ahead: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """The bucket of each distance from -furthest_back to +furthest_ahead, as T5 has them: exact near by, logarithmic far away.

    Looking ahead has half of the buckets; without it (the decoder), looking back has all.
    """
    distances = np.arange(-furthest_back, furthest_ahead + 1)
    half = buckets // 2 if furthest_ahead else buckets
    away, exact = np.abs(distances), half // 2
    grown = np.log(np.maximum(away, 1).astype(np.float32) / exact) / math.log(furthest / exact) * (half - exact)
    far = np.minimum(exact + grown.astype(np.int64), half - 1)
    found: NDArray[np.int64] = np.where(away < exact, away, far) + np.where(distances > 0, half if furthest_ahead else 0, 0)
    return found


def both_ways(tokens: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """[tokens, tokens]: the bucket from each token to each, for an encoder."""
    if tokens == 1:
        return np.zeros((1, 1), np.int64)
    line = _distance_buckets(tokens - 1, tokens - 1, buckets, furthest)
    return np.ascontiguousarray(sliding_window_view(line, tokens)[::-1])


def backwards(positions: NDArray[np.integer], total: int, buckets: int, furthest: int) -> NDArray[np.int64]:
    """[positions, total]: the bucket from each position to all before it, for a decoder. What lies ahead is masked, and counts as near."""
    line = _distance_buckets(total, 0, buckets, furthest)
    distances = np.minimum(np.arange(total)[None, :] - np.asarray(positions, np.int64)[:, None], 0)
    found: NDArray[np.int64] = np.ascontiguousarray(line[distances + total])
    return found
