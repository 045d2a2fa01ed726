"""From texts to what a network reads: the prompt's tokens, and the half word that the answer must go on with."""

import re
from dataclasses import dataclass

from flatshare.core.errors import BadInput
from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.generate.network import Prompt
from flatshare.instance.backends.generate.vocabulary import Vocabulary, split_typed

_CHARACTERS_PER_TOKEN = 64  # more than any text needs: a longer one is refused before it is tokenised


@dataclass(frozen=True, slots=True)
class Beginning:
    prompt: Prompt
    unfinished: bytes


def beginning(spec: GenerationSpec, vocabulary: Vocabulary, text: str, typed: str, *, is_chat: bool) -> Beginning:
    """Whole words that were typed count as read; the last one is left to the model, which must write it as it was typed.

    So a word is cut into tokens as the model would cut it, however much of it was there. Raises BadInput for a prompt far too long.
    """
    if len(text) + len(typed) > _CHARACTERS_PER_TOKEN * spec.positions:
        raise BadInput(f"the prompt has {len(text) + len(typed)} characters, the model reads {spec.positions} tokens: shorten it")
    if vocabulary.spaces_first:
        typed = re.sub(r"\s+", " ", typed)  # its tokenizer sees no other white space
    words, half = split_typed(typed)
    if spec.start is not None:
        read = vocabulary.encode(text, with_special=True)
        first = (spec.start, *(vocabulary.encode(words, with_special=False) if words else ()))
        prompt = Prompt(tuple(read), tuple(first))
    else:
        prompt = Prompt(tuple(vocabulary.encode(text + words, with_special=not is_chat)), ())
    if not prompt.text:
        raise BadInput("the prompt has no tokens, and this model adds none: send at least one word")
    if half and vocabulary.spaces_first and not words and not half.startswith(" "):
        half = " " + half
    return Beginning(prompt, half.encode())


def require_positions(spec: GenerationSpec, prompt: Prompt, new_tokens: int) -> None:
    """Raises BadInput if prompt and answer are longer than the model can be."""
    if spec.start is not None and len(prompt.text) > spec.positions:
        raise BadInput(f"the prompt has {len(prompt.text)} tokens, this model reads at most {spec.positions}: shorten it")
    written = prompt.first or prompt.text
    if len(written) + new_tokens > spec.positions:
        raise BadInput(
            f"{len(written)} tokens and {new_tokens} new ones are more than the model's {spec.positions} positions: "
            f"shorten the prompt or lower 'max_tokens'"
        )
