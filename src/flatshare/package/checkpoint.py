"""A checkpoint directory, read and checked: what training wrote becomes what a graph can be generated from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatshare.core.errors import UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.blocks import Trunk
from flatshare.package.graphs.families import read_trunk
from flatshare.package.purpose import Purpose, read_purpose
from flatshare.package.sentence import transformer_folder

_NO_LIMIT = 10**6  # tokenizers without a limit say 1e30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything of the directory but tokenizer and tensors."""

    top: Folder
    """Where modules.json lies, if there is one."""
    folder: Folder
    """Where config.json, weights and tokenizer lie."""
    trunk: Trunk
    purpose: Purpose
    max_tokens: int


def read_checkpoint(path: Path, limits: StoreLimits) -> Checkpoint:
    """Raises BadPackage for what is missing or contradictory, UnsupportedModel for what no generated graph covers."""
    top = Folder(path, limits)
    modules = top.optional_list("modules.json")
    if modules == []:
        raise UnsupportedModel("modules.json has no Pooling and no other module: only sentence encoders are served")
    folder = transformer_folder(top, modules)
    config = Config(folder.required_json("config.json"))
    trunk = read_trunk(config)
    purpose = read_purpose(top, modules, config, trunk.hidden)
    return Checkpoint(top, folder, trunk, purpose, token_limit(folder, purpose, trunk.max_tokens))


def token_limit(folder: Folder, purpose: Purpose, most: int) -> int:
    """Texts are cut at max_seq_length, or without one at what tokenizer and positions admit."""
    if purpose.sentence.longest is not None:
        return min(purpose.sentence.longest, most)
    settings = folder.optional_json("tokenizer_config.json")
    stated: Any = settings.get("model_max_length", settings.get("max_len"))  # the older name
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 2 <= stated <= _NO_LIMIT:
        return min(int(stated), most)
    return most
