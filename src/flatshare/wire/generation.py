"""A generating model's parameters, checked; and its answers, whole or piece by piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from flatshare.core.call import InferCall, InferResult, Scalar
from flatshare.core.errors import BadInput
from flatshare.core.generation import Completion, Decoding, Generated, Piece
from flatshare.core.tensor import Tensor, text_tensor

MAX_ROWS = 8
"""Beams or samples of one prompt."""
MAX_PROMPTS = 64
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_TYPED_CHARACTERS = 8192
_MAX_SESSION_CHARACTERS = 256
_ALIASES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "num_beams": "beams"}
_FIELDS = {"details": "has_details"}
STREAM = "stream"


def parse(parameters: Mapping[str, Scalar]) -> Decoding:
    """Raises BadInput for what is unknown, out of range or contradictory."""
    fields: dict[str, Any] = {}
    for spelled, value in parameters.items():
        if spelled == STREAM:
            continue
        name = _ALIASES.get(spelled, spelled)
        check = _CHECKS.get(name)
        if check is None:
            raise BadInput(f"parameter '{spelled[:64]}' is not known: known are {', '.join(_CHECKS)}")
        fields[_FIELDS.get(name, name)] = check(spelled, value)
    decoding = Decoding(**fields)
    _check_together(decoding)
    return decoding


def wants_stream(parameters: Mapping[str, Scalar]) -> bool:
    return parameters.get(STREAM) is True


def result_of(generated: Generated, call: InferCall, decoding: Decoding) -> InferResult:
    """As tensors [texts]: prompt by prompt, and the best or first text of each first."""
    texts = generated.completions
    outputs = [
        text_tensor("text", [text.text for text in texts]),
        text_tensor("finish_reason", [text.finish.value for text in texts]),
        Tensor.of("tokens", np.array([text.tokens for text in texts], np.int32)),
    ]
    if decoding.has_details or decoding.rows > 1:
        outputs.append(Tensor.of("logprob", np.array([text.logprob for text in texts], np.float32)))
    kept = tuple(tensor for tensor in outputs if not call.wanted or tensor.name in call.wanted)
    return InferResult(kept, {"prompt_tokens": generated.prompt_tokens, "reused_tokens": generated.reused_tokens})


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How the parts of a stream look. Every part is a whole line or event."""

    content_type: bytes
    prefix: bytes = b""
    suffix: bytes = b"\n"

    def piece(self, piece: Piece) -> bytes:
        return self._part({"prompt": piece.prompt, "choice": piece.choice, "text": piece.text})

    def end(self, generated: Generated, model_name: str, digest: str) -> bytes:
        """The last part: what the texts became, whole."""
        answer = {
            "texts": [_summary(completion) for completion in generated.completions],
            "prompt_tokens": generated.prompt_tokens,
            "reused_tokens": generated.reused_tokens,
            "model": {"name": model_name, "digest": digest},
        }
        return self._part({"done": answer})

    def whole(self, part: bytes) -> bytes:
        """A part that is JSON already."""
        return self.prefix + part + self.suffix

    def error(self, sentence: str, name: str) -> bytes:
        """The last part of a stream that failed in the middle."""
        return self._part({"error": sentence, "type": name})

    def _part(self, fields: Mapping[str, Any]) -> bytes:
        return self.prefix + orjson.dumps(fields) + self.suffix


LINES = StreamForm(b"application/jsonlines")
EVENTS = StreamForm(b"text/event-stream", b"data: ", b"\n\n")


def _summary(completion: Completion) -> dict[str, Any]:
    return {
        "prompt": completion.prompt,
        "choice": completion.choice,
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish.value,
    }


def _check_together(decoding: Decoding) -> None:
    if decoding.beams > 1 and decoding.temperature > 0:
        raise BadInput("beams search without chance: leave out 'temperature', or 'beams'")
    if decoding.beams > 1 and decoding.n > decoding.beams:
        raise BadInput(f"{decoding.beams} beams cannot give {decoding.n} texts: ask for at most as many as there are beams")
    if decoding.n > 1 and decoding.beams == 1 and decoding.temperature == 0:
        raise BadInput("greedy gives one text: for several, set 'temperature' or 'beams'")
    if decoding.min_tokens > decoding.max_tokens:
        raise BadInput(f"'min_tokens' {decoding.min_tokens} is more than 'max_tokens' {decoding.max_tokens}")


def _integer(least: int, most: int) -> Callable[[str, Scalar], int]:
    def check(name: str, value: Scalar) -> int:
        if type(value) is not int or not least <= value <= most:
            raise BadInput(f"'{name}' must be an integer from {least} to {most}")
        return value

    return check


def _number(least: float, most: float) -> Callable[[str, Scalar], float]:
    def check(name: str, value: Scalar) -> float:
        if isinstance(value, bool | str) or not least <= value <= most:
            raise BadInput(f"'{name}' must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def _text(most: int) -> Callable[[str, Scalar], str]:
    def check(name: str, value: Scalar) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise BadInput(f"'{name}' must be a text of at most {most} characters")
        return value

    return check


def _flag(name: str, value: Scalar) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"'{name}' must be true or false")
    return value


def _stops(name: str, value: Scalar) -> tuple[str, ...]:
    """One text, or a JSON list of texts, since v2 parameters are no lists."""
    stops: Any = value
    if isinstance(value, str) and value.startswith("["):
        try:
            stops = orjson.loads(value)
        except orjson.JSONDecodeError:
            stops = value  # a stop string may begin with a bracket
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise BadInput(f"'{name}' must be a text or a list of at most {_MAX_STOPS} texts")
    if not all(0 < len(stop) <= _MAX_STOP_CHARACTERS for stop in stops):
        raise BadInput(f"'{name}': each text must have 1 to {_MAX_STOP_CHARACTERS} characters; an empty one would stop at once")
    return tuple(stops)


_CHECKS: Mapping[str, Callable[[str, Scalar], Any]] = {
    "max_tokens": _integer(1, 2**20),
    "min_tokens": _integer(0, 2**20),
    "temperature": _number(0, 100),
    "top_k": _integer(0, 2**20),
    "top_p": _number(1e-6, 1),
    "repetition_penalty": _number(0.01, 100),
    "seed": _integer(0, 2**63 - 1),
    "n": _integer(1, MAX_ROWS),
    "beams": _integer(1, MAX_ROWS),
    "length_penalty": _number(-10, 10),
    "stop": _stops,
    "typed": _text(_MAX_TYPED_CHARACTERS),
    "session": _text(_MAX_SESSION_CHARACTERS),
    "deadline_ms": _number(1, 3_600_000),
    "details": _flag,
}
