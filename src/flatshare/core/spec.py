"""What a model is, once imported: a graph, a tokenizer and tensors, each by digest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flatshare.core.ids import Digest, ModelDigest, TensorDigest
from flatshare.core.signature import Task

Activation = Literal["softmax", "sigmoid", "identity"]
"""How logits become scores."""
TOKENS_PER_RUN = 512
"""Texts of equal length share a run up to this many tokens, so that the workspace stays that of one long text."""
POOLING_MASK = "pooling_mask"
"""The input of graphs that leave a prompt's tokens out of the pooling: int64 [texts, tokens], 0 for those."""

Dtype = Literal["F32", "I8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One weight, little-endian, row-major. Other types are widened at import to float32; int8 is what a compact model asked for."""

    name: str
    digest: TensorDigest
    shape: tuple[int, ...]
    size_bytes: int
    dtype: Dtype = "F32"


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What an engine must know of a generating model besides its graphs."""

    layers: int
    """Of the decoder: each has a cache of keys and values."""
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int
    """Prompt and answer together have at most this many tokens."""
    ends: tuple[int, ...]
    """Tokens that end a text."""
    start: int | None = None
    """Encoder-decoder models only: the token that an answer starts from."""
    buckets: int = 0
    """Of relative positions, for models that have them."""
    furthest: int = 0
    chat_template: str | None = None
    template_tokens: tuple[tuple[str, str], ...] = ()
    """Special tokens by the names that the template uses: bos_token, eos_token …"""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file of a model that is served from its own files, as they were packed."""

    path: str
    """Relative to the package's folder."""
    digest: Digest
    size_bytes: int
    mapped_bytes: int = 0
    """What of it models map: of a file of weights, the tensors that no earlier file on this machine has."""


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """Everything that decides what a model answers, so its digest is the model's identity."""

    digest: ModelDigest
    family: str
    graph: Digest
    tokenizer: Digest
    tensors: tuple[TensorSpec, ...]
    max_tokens: int
    """Longer texts are truncated to this many tokens, special tokens included, and the answer says so."""
    width: int
    """Length of an embedding; a graph that gives more is cut to it (Matryoshka)."""
    is_lowercased: bool
    workspace_bytes: int
    """Private memory of one run of `max_tokens` tokens, an upper estimate from the architecture's sizes."""
    notes: tuple[str, ...] = ()
    """What the importer did that its owner should know: widened types, defaults taken."""
    backend: str = "mapped"
    """The engine that runs it, by its name in `instance/backends/engines.py`."""
    task: Task = Task.EMBEDDING
    vocabulary: int = 2**31
    """Token ids are below this."""
    labels: tuple[str, ...] = ()
    activation: Activation = "identity"
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that a caller may have put before its own, by name."""
    default_prompt: str | None = None
    """The name of the one that is put there if nobody says."""
    is_normalized: bool = False
    """Whether embeddings have length 1, cut ones too."""
    is_prompt_pooled: bool = True
    """Whether an embedding is made of a prompt's tokens too; if not, the graph asks for a mask of the others."""
    generation: GenerationSpec | None = None
    files: tuple[PackageFile, ...] = ()
    """Of a Triton repository; `graph` is then its description (core/repository.py)."""

    @property
    def mapped_bytes(self) -> int:
        return sum(self.distinct_pieces.values())

    @property
    def distinct_pieces(self) -> dict[TensorDigest, int]:
        """What is mapped of the model once it is resident: its tensors, and its files of weights."""
        files = {TensorDigest(file.digest): file.mapped_bytes for file in self.files if file.mapped_bytes}
        return {**self.distinct_tensors, **files} if files else self.distinct_tensors

    @property
    def distinct_tensors(self) -> dict[TensorDigest, int]:
        """Size in bytes by digest: a tensor that occurs twice counts once."""
        return {tensor.digest: tensor.size_bytes for tensor in self.tensors}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies on this machine's disk."""

    pack: str
    offset: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A manifest together with the places of its tensors and the paths of its graph and tokenizer."""

    manifest: ModelManifest
    places: dict[TensorDigest, TensorPlace]
    graph_path: str
    tokenizer_path: str
    packs_dir: str
    package_dir: str = ""
    """The folder with `files`."""
    measured_own_bytes: int | None = None
    """Private memory that a load of it was seen to take on this machine; None if it never was alone."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What one model below a prefix would take in memory, as far as this machine knows."""

    own_bytes: int
    shared: Mapping[str, int]
    """Private memory that it has in common with others, by what it is: sessions, workspaces, tokenizers."""
    tensors: Mapping[str, int]
    """Weights by digest; of an artifact that was never imported here, its size by its URI."""
