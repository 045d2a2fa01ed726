"""OpenAI's completions and chat completions ⇄ our plain form for models that write, whole or streamed.

https://platform.openai.com/docs/api-reference/completions · https://platform.openai.com/docs/api-reference/chat
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from flatshare.core.errors import BadInput
from flatshare.wire.openai import NamedModel, fields_of, model_of

_OURS = {"top_k", "min_tokens", "repetition_penalty", "beams", "length_penalty", "typed", "session", "deadline_ms"}
"""Parameters that OpenAI does not have: its client sends them with `extra_body`."""
_SHARED = {"max_tokens", "temperature", "top_p", "n", "stop", "seed"}
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
}
"""What we do not have may be sent as long as it asks for nothing."""
_FIELDS = {"model", "stream", "stream_options", "user", *_OURS, *_SHARED, *_NEUTRAL}
_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "deadline": "length"}
# OpenAI's own defaults: what its clients leave out means this.
_MAX_TOKENS, _CHAT_MAX_TOKENS, _TEMPERATURE = 16, 256, 1.0


@dataclass(frozen=True, slots=True)
class WritingCall:
    """What somebody wants written."""

    model: NamedModel
    asked: dict[str, Any]
    """`inputs` or `messages`."""
    parameters: dict[str, Any]
    is_streamed: bool
    has_usage: bool
    """Of a stream: a last part tells the tokens."""

    @property
    def is_chat(self) -> bool:
        return "messages" in self.asked

    @property
    def body(self) -> bytes:
        return orjson.dumps({**self.asked, "parameters": self.parameters})


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around every answer and every part of one."""

    call: WritingCall
    id: str
    created_s: int

    def answer(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        return self._around("chat.completion" if self.call.is_chat else "text_completion", choices, usage)

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        """A server-sent event."""
        kind = "chat.completion.chunk" if self.call.is_chat else "text_completion"
        return b"data: " + orjson.dumps(self._around(kind, choices, usage)) + b"\n\n"

    def _around(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created_s, "model": self.call.model.name}
        return fields | {"choices": choices} | ({"usage": usage} if usage is not None else {})


def parse_completion(body: bytes) -> WritingCall:
    """Raises BadInput."""
    fields = fields_of(body, _FIELDS | {"prompt"})
    prompts = fields.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadInput("'prompt' must be a text or a list of texts: token ids differ from model to model, so they are not taken")
    return _call(fields, {"inputs": prompts}, _MAX_TOKENS)


def parse_chat(body: bytes) -> WritingCall:
    """Raises BadInput."""
    fields = fields_of(body, _FIELDS | {"messages", "max_completion_tokens"})
    if not isinstance(fields.get("messages"), list) or not fields["messages"]:
        raise BadInput("'messages' must be a list of at least one message")
    if fields.get("max_completion_tokens") is not None:  # today's name for it
        fields["max_tokens"] = fields["max_completion_tokens"]
    messages = [_message(message) for message in fields["messages"]]
    return _call(fields, {"messages": messages}, _CHAT_MAX_TOKENS)


def render(envelope: Envelope, answer: bytes) -> bytes:
    """Raises BadInput if the model writes nothing."""
    fields = orjson.loads(answer)
    if "texts" not in fields:
        raise not_writing(envelope.call)
    kind = "message" if envelope.call.is_chat else "text"
    choices = []
    for index, (text, reason) in enumerate(zip(fields["texts"], fields["finish_reasons"], strict=True)):
        content = {"role": "assistant", "content": text} if envelope.call.is_chat else text
        choices.append({"index": index, kind: content, "finish_reason": _FINISH[reason], "logprobs": None})
    return orjson.dumps(envelope.answer(choices, _usage(fields.get("prompt_tokens", ()), fields.get("tokens", ()))))


def render_line(envelope: Envelope, line: bytes, index_of: "Choices") -> bytes:
    """A line of our own stream as theirs: text as it comes, and at last why each text has ended."""
    fields = orjson.loads(line)
    if "error" in fields:
        return stream_error(str(fields["error"]), str(fields.get("type")))
    if "done" not in fields:
        return envelope.chunk([_part(envelope.call, index_of(fields), fields["text"], None)])
    done = fields["done"]
    ends = [_part(envelope.call, index_of(text), "", _FINISH[text["finish_reason"]]) for text in done["texts"]]
    usage = _usage(done["prompt_tokens"], [text["tokens"] for text in done["texts"]])
    return envelope.chunk(ends) + (envelope.chunk([], usage) if envelope.call.has_usage else b"") + b"data: [DONE]\n\n"


def stream_error(sentence: str, name: str) -> bytes:
    """An event that OpenAI's clients raise as an error."""
    return b"data: " + orjson.dumps({"error": {"message": sentence, "type": "server_error", "param": None, "code": name}}) + b"\n\n"


def not_writing(call: WritingCall) -> BadInput:
    return BadInput(f"{call.model.name} is no model that writes")


class Choices:
    """Numbers the texts of several prompts through, as OpenAI does."""

    def __init__(self, call: WritingCall) -> None:
        self._each = int(call.parameters.get("n", 1))

    def __call__(self, text: Mapping[str, int]) -> int:
        return text["prompt"] * self._each + text["choice"]


def _call(fields: dict[str, Any], asked: dict[str, Any], max_tokens: int) -> WritingCall:
    for name, neutral in _NEUTRAL.items():
        if fields.get(name) not in neutral:
            raise BadInput(f"'{name}' is not supported: leave it out")
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise BadInput("'stream_options' may hold include_usage only")
    parameters: dict[str, Any] = {"max_tokens": max_tokens, "temperature": _TEMPERATURE}
    if fields.get("beams"):  # a search has no chance in it
        parameters["temperature"] = 0
    parameters |= {name: fields[name] for name in sorted(_SHARED | _OURS) if fields.get(name) is not None}
    is_streamed = fields.get("stream") is True
    return WritingCall(model_of(fields), asked, parameters, is_streamed, has_usage=options.get("include_usage") is True)


def _message(message: object) -> object:
    """Content may come as a list of texts; images and tools are refused by the model's own check of messages."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
        raise BadInput("a message's content may hold parts of type text only")
    return message | {"content": "".join(part["text"] for part in content)}


def _part(call: WritingCall, index: int, text: str, reason: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {"delta": {"role": "assistant", "content": text} if text else {}} if call.is_chat else {"text": text}
    return {"index": index, **content, "finish_reason": reason, "logprobs": None}


def _usage(prompt_tokens: Any, tokens: Any) -> dict[str, int]:
    asked, written = sum(prompt_tokens), sum(tokens)
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
