"""What a generating model's checkpoint says, whatever files it came in; and how it is found out whether a folder holds one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatshare.core.errors import BadPackage
from flatshare.core.spec import GenerationSpec
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.builder import WeightInput
from flatshare.package.graphs.steps import GenerationGraphs
from flatshare.package.tensor_source import Source

LLAMA_TYPES = ("llama", "mistral", "qwen2")
T5_TYPES = ("t5", "mt5")
_MAX_TEMPLATE_CHARACTERS = 65_536
_TEMPLATE_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class GenerationCheckpoint:
    """Everything that an import needs."""

    family: str
    graphs: GenerationGraphs
    spec: GenerationSpec
    sources: dict[str, Source]
    tokenizer: bytes
    workspace_bytes: int
    notes: tuple[str, ...]

    def source(self, wanted: WeightInput) -> Source:
        """The tensor that a graph asks for. Raises BadPackage if it is missing or of another shape."""
        found = self.sources.get(wanted.name)
        if found is None:
            raise BadPackage(f"the weights lack the tensor '{wanted.name}', which the config asks for")
        if found.shape != wanted.shape:
            raise BadPackage(
                f"tensor '{wanted.name}' has shape {list(found.shape)}, the config asks for {list(wanted.shape)}: "
                f"weights and config do not belong together"
            )
        return found


def ends_of(config: Config, generation: Mapping[str, Any], vocabulary: int) -> tuple[int, ...]:
    """The tokens that end a text; generation_config.json knows better than config.json."""
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = value if isinstance(value, list) else [value]
    if not ends or not all(type(end) is int and 0 <= end < vocabulary for end in ends):
        raise BadPackage(f"eos_token_id must be a token or a list of tokens below {vocabulary}, not {repr(value)[:64]}: no text would end")
    return tuple(dict.fromkeys(ends))


def chat_template_of(folder: Folder) -> str | None:
    """From chat_template.jinja or tokenizer_config.json; of several, the one named "default"."""
    if folder.has("chat_template.jinja"):
        return checked_template(folder.content("chat_template.jinja").decode("utf-8", "replace"))
    template = folder.optional_json("tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"), None)
    return checked_template(template) if isinstance(template, str) else None


def checked_template(template: str) -> str:
    import jinja2  # noqa: PLC0415  # 2 MB of modules that only chat models need

    if len(template) > _MAX_TEMPLATE_CHARACTERS:
        raise BadPackage(f"the chat template has {len(template)} characters: at most {_MAX_TEMPLATE_CHARACTERS} are accepted")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(template)  # noqa: S701  # no HTML; only read
    except jinja2.TemplateError as error:
        raise BadPackage(f"the chat template cannot be used: {error}") from error
    return template


def template_tokens_of(folder: Folder) -> tuple[tuple[str, str], ...]:
    """Special tokens by name, as templates use them."""
    fields = folder.optional_json("tokenizer_config.json")
    found = []
    for name in _TEMPLATE_TOKENS:
        token = fields.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found.append((name, token))
    return tuple(found)
