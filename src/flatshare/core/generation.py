"""What a caller asks of a generating model, and what it hears: as data, whatever the protocol."""

from dataclasses import dataclass
from enum import StrEnum

GREEDY = 0.0


class Finish(StrEnum):
    """Why a text ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a text is to be continued. The defaults are greedy."""

    max_tokens: int = 64
    min_tokens: int = 0
    temperature: float = GREEDY
    top_k: int = 0
    """Only the k likeliest tokens; 0 admits all."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """Equal seeds give equal texts; without one, chance decides."""
    n: int = 1
    """Texts per prompt: so many samples, or the best of the beams."""
    beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    typed: str = ""
    """What the answer must begin with; the last word may be unfinished."""
    session: str | None = None
    """Whoever sends it again, with a text that has grown, has the beginning read already."""
    deadline_ms: float | None = None
    has_details: bool = False

    @property
    def rows(self) -> int:
        """Rows of the batch that one prompt takes."""
        return max(self.n, self.beams)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has just come: of which prompt, and of which of its texts."""

    prompt: int
    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One text that has ended."""

    prompt: int
    choice: int
    text: str
    tokens: int
    finish: Finish
    logprob: float
    """Sum of the log-probabilities of its tokens."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Everything that came of a call: completions ordered by prompt and choice."""

    completions: tuple[Completion, ...]
    prompt_tokens: tuple[int, ...]
    reused_tokens: tuple[int, ...]
    """Of each prompt, how many tokens a session had read already."""
