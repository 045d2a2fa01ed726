"""A Hugging Face checkpoint directory, read and checked: what training wrote becomes what a graph can be generated from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatshare.core.errors import BadInput, BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.package.graphs.bert import ACTIVATIONS, POOLINGS, BertShape, SentenceHead
from flatshare.wire import json_body

_MAX_DIMENSION = 2**20  # beyond any real model, small enough that products stay sane
_NO_LIMIT = 10**6  # tokenizers without a limit say 1e30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything of the directory but the tensors' bytes."""

    shape: BertShape
    head: SentenceHead
    max_tokens: int
    is_lowercased: bool
    weights_path: Path
    tokenizer_path: Path
    notes: tuple[str, ...]


def read_checkpoint(folder: Path, limits: StoreLimits) -> Checkpoint:
    """Raises BadPackage for what is missing or contradictory, UnsupportedModel for what this version does not serve."""
    reader = _Reader(folder, limits)
    config = reader.required_json("config.json")
    shape = _bert_shape(config)
    head, is_lowercased, longest, notes = _sentence_modules(reader)
    return Checkpoint(
        shape=shape,
        head=head,
        max_tokens=_token_limit(shape, longest, reader),
        is_lowercased=is_lowercased,
        weights_path=_weights_path(folder),
        tokenizer_path=reader.required_path("tokenizer.json", "save it with tokenizer.save_pretrained() of a fast tokenizer"),
        notes=notes,
    )


class _Reader:
    """Reads JSON files of bounded size from one folder."""

    def __init__(self, folder: Path, limits: StoreLimits) -> None:
        self._folder = folder
        self._limits = limits

    def required_path(self, name: str, hint: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise BadPackage(f"{name} is missing: {hint}")
        return path

    def required_json(self, name: str) -> dict[str, Any]:
        self.required_path(name, "a checkpoint directory is what save_pretrained() writes")
        return self._object(name, self._json(name))

    def optional_json(self, name: str) -> dict[str, Any]:
        """The object in the file, or an empty one if there is no such file."""
        return self._object(name, self._json(name)) if (self._folder / name).is_file() else {}

    def optional_list(self, name: str) -> list[Any] | None:
        if not (self._folder / name).is_file():
            return None
        value = self._json(name)
        if not isinstance(value, list):
            raise BadPackage(f"{name} is not a list")
        return value

    def _json(self, name: str) -> Any:
        path = self._folder / name
        if path.stat().st_size > self._limits.max_json_bytes:
            raise BadPackage(f"{name} has more than {self._limits.max_json_bytes} bytes")
        try:
            return json_body.parsed(path.read_bytes(), name)
        except BadInput as error:
            raise BadPackage(str(error)) from error

    def _object(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadPackage(f"{name} is not a JSON object")
        return value


def _bert_shape(config: dict[str, Any]) -> BertShape:
    family = config.get("model_type")
    if family != "bert":
        raise UnsupportedModel(f"model_type is {family!r}: this version serves 'bert' sentence encoders; other families follow")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModel(f"position_embedding_type {config['position_embedding_type']!r} is not served: only 'absolute' is")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedModel("config.json describes a decoder: only encoders are served")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UnsupportedModel(f"hidden_act {activation!r} is not served: known are {', '.join(ACTIVATIONS)}")
    shape = BertShape(
        vocabulary=_size(config, "vocab_size"),
        hidden=_size(config, "hidden_size"),
        layers=_size(config, "num_hidden_layers"),
        heads=_size(config, "num_attention_heads"),
        intermediate=_size(config, "intermediate_size"),
        positions=_size(config, "max_position_embeddings"),
        segments=_size(config, "type_vocab_size"),
        epsilon=_epsilon(config),
        activation=activation,
    )
    if shape.hidden % shape.heads:
        raise BadPackage(
            f"hidden_size {shape.hidden} is not a multiple of num_attention_heads {shape.heads}: config.json contradicts itself"
        )
    if shape.layers > 1000:
        raise BadPackage(f"num_hidden_layers {shape.layers} is beyond any real model")
    return shape


def _size(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value <= _MAX_DIMENSION:
        raise BadPackage(f"config.json: {name} must be an integer from 1 to {_MAX_DIMENSION}, not {value!r}")
    return value


def _epsilon(config: dict[str, Any]) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise BadPackage(f"config.json: layer_norm_eps must be a number between 0 and 1, not {value!r}")
    return float(value)


def _sentence_modules(reader: _Reader) -> tuple[SentenceHead, bool, int | None, tuple[str, ...]]:
    """What modules.json says: the head, lower-casing, the longest text in tokens, and notes."""
    modules = reader.optional_list("modules.json")
    if modules is None:
        return (
            SentenceHead(("mean",), is_normalized=False),
            False,
            None,
            ("no modules.json: mean pooling without normalisation was assumed",),
        )
    poolings: tuple[str, ...] = ()
    is_normalized = False
    for index, module in enumerate(modules):
        kind, path = _module(module)
        if kind == "Transformer" and index == 0 and path in {"", "."}:
            continue
        if kind == "Pooling" and not poolings and not is_normalized:
            poolings = _poolings(reader.required_json(f"{path}/config.json"))
        elif kind == "Normalize" and poolings:
            is_normalized = True
        else:
            raise UnsupportedModel(
                f"modules.json: a '{kind}' at place {index} is not served; Transformer, Pooling and Normalize in this order are"
            )
    if not poolings:
        raise UnsupportedModel("modules.json has no Pooling: only sentence encoders are served")
    sentence = reader.optional_json("sentence_bert_config.json")
    longest = sentence.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 2):
        raise BadPackage(f"sentence_bert_config.json: max_seq_length must be an integer of at least 2, not {longest!r}")
    return SentenceHead(poolings, is_normalized=is_normalized), bool(sentence.get("do_lower_case")), longest, ()


def _module(module: Any) -> tuple[str, str]:
    if not isinstance(module, dict) or not isinstance(module.get("type"), str) or not isinstance(module.get("path", ""), str):
        raise BadPackage("modules.json: each module needs a 'type' and a 'path'")
    path = module.get("path", "")
    if path.startswith("/") or any(part.startswith(".") for part in path.removeprefix(".").split("/")) or len(path) > 255:
        raise BadPackage(f"modules.json: path {path[:255]!r} leaves the checkpoint, or is longer than 255 characters")
    return module["type"].rsplit(".", 1)[-1], path


def _poolings(config: dict[str, Any]) -> tuple[str, ...]:
    """Old configs have a flag for each mode, new ones a `pooling_mode`."""
    mode = config.get("pooling_mode")
    if mode is not None:
        modes = tuple(mode) if isinstance(mode, list) else (str(mode),)
        names = tuple(pooling for pooling in POOLINGS if pooling in modes)
        unknown = [m for m in modes if m not in POOLINGS]
    else:
        flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len": "mean_sqrt_len_tokens"}
        names = tuple(pooling for pooling in POOLINGS if config.get(f"pooling_mode_{flags[pooling]}"))
        unknown = [
            k for k, v in config.items() if k.startswith("pooling_mode_") and v and k.removeprefix("pooling_mode_") not in flags.values()
        ]
    if unknown or not names:
        raise UnsupportedModel(f"pooling {unknown or 'none'} is not served: known are {', '.join(POOLINGS)}")
    return names


def _token_limit(shape: BertShape, longest: int | None, reader: _Reader) -> int:
    """sentence-transformers truncates at max_seq_length, or without one at what tokenizer and positions admit."""
    if longest is not None:
        return min(longest, shape.positions)
    stated = reader.optional_json("tokenizer_config.json").get("model_max_length")
    if isinstance(stated, int | float) and 2 <= stated <= _NO_LIMIT:
        return min(int(stated), shape.positions)
    return shape.positions


def _weights_path(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    if (folder / "model.safetensors.index.json").is_file():
        raise UnsupportedModel("sharded safetensors are not served yet: save with a larger max_shard_size")
    if (folder / "pytorch_model.bin").is_file():
        raise UnsupportedModel("pytorch_model.bin is not served yet: save with safe_serialization=True")
    raise BadPackage("model.safetensors is missing: a checkpoint directory is what save_pretrained() writes")
