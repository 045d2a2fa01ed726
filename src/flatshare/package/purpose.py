"""What a checkpoint is for: its task, its head's shape, its labels, and how its scores are to be read."""

from dataclasses import dataclass, field, replace
from typing import Any

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.signature import Task
from flatshare.core.spec import Activation
from flatshare.package.config import Config
from flatshare.package.folder import Folder
from flatshare.package.graphs.heads import Head, SequenceHead, TokenHead
from flatshare.package.sentence import SentenceModules, read_sentence

_MAX_LABELS = 100_000
_OTHER_TASKS = (
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForCausalLM",
    "GPT2LMHeadModel",
    "ForConditionalGeneration",
)
_OTHER_ENCODERS = ("SparseEncoder", "MultiVectorEncoder")
_PROBLEMS = (None, "single_label_classification", "multi_label_classification", "regression")
_ACTIVATIONS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity"}


@dataclass(frozen=True, slots=True)
class Purpose:
    """Everything about a checkpoint that is not its architecture."""

    task: Task
    head: Head
    labels: tuple[str, ...] = ()
    activation: Activation = "identity"
    sentence: SentenceModules = field(default_factory=SentenceModules)
    notes: tuple[str, ...] = ()


def read_purpose(folder: Folder, modules: list[Any] | None, config: Config, hidden: int) -> Purpose:
    """Raises BadPackage or UnsupportedModel."""
    stated = folder.optional_json("config_sentence_transformers.json")
    kind = stated.get("model_type")
    if kind in _OTHER_ENCODERS:
        raise UnsupportedModel(f"config_sentence_transformers.json describes a {kind}: sentence encoders and cross-encoders are served")
    architecture = _architecture(config)
    if modules is not None and kind != "CrossEncoder":
        return _sentence(folder, modules, hidden)
    if architecture.endswith("ForSequenceClassification"):
        return _sequence(stated, config, modules)
    if architecture.endswith("ForTokenClassification"):
        labels = _labels(config)
        return Purpose(Task.TOKEN_CLASSIFICATION, TokenHead(len(labels)), labels, "softmax")
    if kind == "CrossEncoder" or architecture.endswith(_OTHER_TASKS):
        raise UnsupportedModel(f"the architecture {architecture[:64]!r} is not served: encoders, classifiers and rankers are")
    return _sentence(folder, None, hidden)


def _architecture(config: Config) -> str:
    names = config.get("architectures")
    if names is None:
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadPackage("config.json: architectures must be a list of names")
    return names[0] if names else ""


def _sentence(folder: Folder, modules: list[Any] | None, hidden: int) -> Purpose:
    sentence = read_sentence(folder, modules, hidden)
    return Purpose(Task.EMBEDDING, sentence.head, sentence=sentence, notes=sentence.notes)


def _sequence(stated: dict[str, Any], config: Config, modules: list[Any] | None) -> Purpose:
    """A classifier; or a ranker, if it has one output and nobody says that this is a regression."""
    labels, problem = _labels(config), config.fields.get("problem_type")
    if problem not in _PROBLEMS:
        raise UnsupportedModel(f"problem_type {repr(problem)[:64]} is not served: known are {', '.join(map(str, _PROBLEMS[1:]))}")
    if modules is not None and len(modules) != 1:
        raise UnsupportedModel("modules.json: a cross-encoder of several modules is not served, only one that is a Transformer alone")
    purpose = Purpose(Task.CLASSIFICATION, SequenceHead(len(labels)), labels)
    if _is_cross_encoder(stated, config):
        task = Task.RANKING if len(labels) == 1 else Task.CLASSIFICATION
        return replace(purpose, task=task, activation=_cross_encoder_activation(stated, config, len(labels)))
    if len(labels) == 1 and problem != "regression":
        note = "one label and no problem_type: a ranker with sigmoid was assumed"
        return replace(purpose, task=Task.RANKING, activation="sigmoid", notes=(note,))
    activations: dict[str, Activation] = {"multi_label_classification": "sigmoid", "regression": "identity"}
    return replace(purpose, activation=activations.get(str(problem), "softmax"))


def _is_cross_encoder(stated: dict[str, Any], config: Config) -> bool:
    names = ("sentence_transformers", "sbert_ce_default_activation_function")
    return stated.get("model_type") == "CrossEncoder" or any(name in config.fields for name in names)


def _cross_encoder_activation(stated: dict[str, Any], config: Config, labels: int) -> Activation:
    """As sentence-transformers finds it: what is named, of torch's; else sigmoid for one label, nothing for several."""
    older = config.expect("sentence_transformers", dict, "an object", default={})
    names = (older.get("activation_fn"), config.get("sbert_ce_default_activation_function"), stated.get("activation_fn"))
    name = next((name for name in names if name is not None), None)
    if not isinstance(name, str) or not name.startswith("torch."):
        return "sigmoid" if labels == 1 else "identity"
    activation = _ACTIVATIONS.get(name.rsplit(".", 1)[-1])
    if activation is None:
        raise UnsupportedModel(f"the cross-encoder's activation {name[:64]!r} is not served: Sigmoid and Identity are")
    return activation


def _labels(config: Config) -> tuple[str, ...]:
    """id2label; without it num_labels of transformers' default names, and two without either."""
    stated = config.get("id2label")
    if stated is None:
        return tuple(f"LABEL_{index}" for index in range(config.size("num_labels", default=2)))
    if not isinstance(stated, dict) or not 0 < len(stated) <= _MAX_LABELS:
        raise BadPackage(f"config.json: id2label must be an object of 1 to {_MAX_LABELS} labels")
    labels = [stated.get(str(index)) for index in range(len(stated))]
    if not all(isinstance(label, str | int) for label in labels):
        raise BadPackage(f"config.json: id2label must name a label for each number from 0 to {len(labels) - 1}")
    return tuple(map(str, labels))
