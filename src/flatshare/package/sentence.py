"""sentence-transformers' files: modules.json and what lies beside it → how token vectors become one vector, prompts, limits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.heads import DENSE_ACTIVATIONS, Dense, LayerNorm, Normalize, SentenceHead, Step
from flatshare.package.graphs.pooling import POOLINGS

_SETTINGS = tuple(
    f"sentence_{family}_config.json" for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_OLD_FLAGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
_NEW_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt_len"} | {pooling: pooling for pooling in POOLINGS}
_SERVED = "Transformer, Pooling, then Dense, LayerNorm, Dropout and Normalize are"


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What the modules say beside the architecture."""

    head: SentenceHead = field(default_factory=lambda: SentenceHead(("mean",), ()))
    weight_folders: tuple[str, ...] = ()
    """Folders of modules that have weights."""
    is_lowercased: bool = False
    longest: int | None = None
    """max_seq_length, if it is stated."""
    dimensions: int | None = None
    """truncate_dim, if it is stated."""
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    notes: tuple[str, ...] = ()


def transformer_folder(folder: Folder, modules: list[Any] | None) -> Folder:
    """Where config, weights and tokenizer lie: beside modules.json, or in a folder of their own, as older versions have it."""
    if not modules:
        return folder
    kind, path = _module(modules[0])
    if kind != "Transformer":
        raise UnsupportedModel(f"modules.json: a '{kind}' at place 0 is not served; {_SERVED}, in this order")
    return folder.below("" if path == "." else path)


def read_sentence(folder: Folder, modules: list[Any] | None, hidden: int) -> SentenceModules:
    """Raises BadPackage or UnsupportedModel."""
    if modules is None:
        return SentenceModules(notes=("no modules.json: mean pooling without normalisation was assumed",))
    kinds = [_module(module) for module in modules]
    if len(kinds) < 2 or kinds[1][0] != "Pooling":
        found = f"a '{kinds[1][0]}' at place 1" if len(kinds) > 1 else "no Pooling"
        raise UnsupportedModel(f"modules.json has {found}: only sentence encoders are served, where {_SERVED}")
    pooling = Config(folder.required_json(f"{kinds[1][1]}/config.json"), f"{kinds[1][1]}/config.json")
    poolings = _poolings(pooling.fields, hidden)
    steps = tuple(_steps(folder, kinds[2:], hidden * len(poolings)))
    settings = _settings(transformer_folder(folder, modules))
    stated = folder.optional_json("config_sentence_transformers.json")
    head = SentenceHead(poolings, steps, is_prompt_pooled=pooling.flag("include_prompt", default=True))
    prompts, default = _prompts(stated)
    return SentenceModules(
        head=head,
        weight_folders=tuple(step.path for step in steps if not isinstance(step, Normalize)),
        is_lowercased=bool(settings.get("do_lower_case")),
        longest=_longest(settings),
        dimensions=_dimensions(stated, head.width(hidden)),
        prompts=prompts,
        default_prompt=default,
    )


def _module(module: Any) -> tuple[str, str]:
    """A module's kind, and the folder it lies in."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str) or not isinstance(module.get("path", ""), str):
        raise BadPackage("modules.json: each module needs a 'type' and a 'path'")
    path = module.get("path", "")
    if path.startswith("/") or any(part.startswith(".") for part in path.removeprefix(".").split("/")) or len(path) > 255:
        raise BadPackage(f"modules.json: path {path[:255]!r} leaves the checkpoint, or is longer than 255 characters")
    return module["type"].rsplit(".", 1)[-1][:64], path


def _steps(folder: Folder, modules: list[tuple[str, str]], width: int) -> Iterator[Step]:
    """What follows the pooling, each as wide as the one before."""
    for index, (kind, path) in enumerate(modules, 2):
        if kind == "Normalize":
            yield Normalize()
        elif kind == "Dense":
            dense = _dense(Config(folder.required_json(f"{path}/config.json"), f"{path}/config.json"), path, width)
            width = dense.outputs
            yield dense
        elif kind == "LayerNorm":
            stated = Config(folder.required_json(f"{path}/config.json"), f"{path}/config.json").size("dimension")
            _require_width(path, "dimension", stated, width)
            yield LayerNorm(path, width)
        elif kind != "Dropout":
            raise UnsupportedModel(f"modules.json: a '{kind}' at place {index} is not served; {_SERVED}, in this order")


def _dense(config: Config, path: str, width: int) -> Dense:
    inputs = config.size("in_features")
    _require_width(path, "in_features", inputs, width)
    name = config.expect("activation_function", str, "a text", default="torch.nn.modules.activation.Tanh")
    if not name.startswith("torch."):
        name = "torch.nn.modules.activation.Tanh"  # sentence-transformers runs no code of strangers, and takes its default
    if name not in DENSE_ACTIVATIONS:
        raise UnsupportedModel(
            f"{path}/config.json: activation_function {name[:64]!r} is not served: known are {', '.join(DENSE_ACTIVATIONS)}"
        )
    if config.get("module_input_name") not in (None, "sentence_embedding"):
        raise UnsupportedModel(f"{path}/config.json: a Dense over anything but the sentence embedding is not served")
    return Dense(
        path,
        inputs,
        config.size("out_features"),
        has_bias=config.flag("bias", default=True),
        activation=DENSE_ACTIVATIONS[name],
        has_residual=config.flag("use_residual", default=False),
    )


def _require_width(path: str, name: str, stated: int, width: int) -> None:
    if stated != width:
        raise BadPackage(f"{path}/config.json: {name} is {stated}, but what comes before gives {width}: the files contradict each other")


def _poolings(config: dict[str, Any], hidden: int) -> tuple[str, ...]:
    """Old configs have a flag for each mode, new ones a `pooling_mode`; without either it is the mean."""
    stated = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if stated not in (None, hidden):
        raise BadPackage(
            f"the pooling's config.json expects vectors of {repr(stated)[:64]}, config.json gives {hidden}: they contradict each other"
        )
    mode = config.get("pooling_mode")
    if mode is not None:
        modes = mode if isinstance(mode, list) else [mode]
        unknown = [m for m in modes if not isinstance(m, str) or m not in _NEW_NAMES]
        names = [] if unknown else [_NEW_NAMES[m] for m in modes]
    else:
        flags = {key.removeprefix("pooling_mode_"): value for key, value in config.items() if key.startswith("pooling_mode_")}
        unknown = [key for key, value in flags.items() if value and key not in _OLD_FLAGS]
        names = [pooling for flag, pooling in _OLD_FLAGS.items() if flags.get(flag)] or ["mean"]
    if unknown or not names:
        raise UnsupportedModel(f"pooling {repr(unknown)[:64] if unknown else 'none'} is not served: known are {', '.join(POOLINGS)}")
    return tuple(names)


def _settings(folder: Folder) -> dict[str, Any]:
    """The transformer module's own config, whichever of its names it has."""
    return next((folder.optional_json(name) for name in _SETTINGS if folder.has(name)), {})


def _longest(settings: dict[str, Any]) -> int | None:
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 2):
        raise BadPackage(f"sentence_bert_config.json: max_seq_length must be an integer of at least 2, not {repr(longest)[:64]}")
    return longest


def _dimensions(stated: dict[str, Any], width: int) -> int | None:
    dimensions = stated.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise BadPackage(f"config_sentence_transformers.json: truncate_dim must be a positive integer, not {repr(dimensions)[:64]}")
    return None if dimensions is None else min(dimensions, width)


def _prompts(stated: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    prompts, default = stated.get("prompts") or {}, stated.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise BadPackage("config_sentence_transformers.json: prompts must be an object of texts")
    if default is not None and default not in prompts:
        raise BadPackage(f"config_sentence_transformers.json: default_prompt_name {repr(default)[:64]} is none of its prompts")
    return {name: text or "" for name, text in prompts.items()}, default
