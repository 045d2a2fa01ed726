"""Chat templates: a conversation → the prompt that the model was trained on. Templates come with packages, so they run in a sandbox."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import orjson
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flatshare.core.errors import BadInput
from flatshare.core.spec import GenerationSpec

_MAX_MESSAGES = 1024


def parse_messages(text: str) -> list[dict[str, Any]]:
    """`[{"role": …, "content": …}]`. Raises BadInput."""
    try:
        messages = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f'"messages" is not valid JSON: {error}') from error
    if not isinstance(messages, list) or not 0 < len(messages) <= _MAX_MESSAGES or not all(_is_message(message) for message in messages):
        raise BadInput('"messages" must be a list of objects, each with a text as "role" and a text as "content"')
    return messages


def render(spec: GenerationSpec, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt, up to where the answer begins. Raises BadInput if the model has no template, or the template refuses."""
    if spec.chat_template is None:
        raise BadInput('this model has no chat template: send "inputs" in place of "messages"')
    try:
        return _compiled(spec.chat_template).render(messages=messages, add_generation_prompt=True, **dict(spec.template_tokens))
    except jinja2.TemplateError as error:
        raise BadInput(f"the model's chat template does not take these messages: {error}") from error


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _refuse(sentence: str) -> NoReturn:
    raise jinja2.TemplateError(sentence)


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
