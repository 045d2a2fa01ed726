"""flan-t5-small and SmolLM2-135M-Instruct, as far as packages carry them: greedy texts equal those of transformers."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from flatshare.bench.flan import smol_gguf, write_flan
from flatshare.core.settings import StoreLimits
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.package.generation.importer import read_generating
from flatshare.store.tensors import TensorStore
from tests.checkpoints import imported
from tests.instance.backends.generate.conftest import ask, texts_of
from tests.writers import greedy

PROMPTS = (
    "summarize: My order has not arrived yet and I would like to know when it will be delivered.",
    "translate English to German: How old are you?",
    "summarize: " + "The package was sent last week but the number does not work, can you check it for me? " * 12,
)


@pytest.mark.slow
def test_flan_t5_writes_what_transformers_writes(backend: GenerateBackend, tmp_path: Path) -> None:
    folder = write_flan(tmp_path / "flan")
    loaded = backend.load(imported(TensorStore(tmp_path / "store"), folder))
    config = T5Config.from_pretrained(folder)
    reference = T5ForConditionalGeneration(config)
    reference.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)  # else transformers 5 ties it
    sources = read_generating(folder, StoreLimits()).sources
    reference.load_state_dict({name: torch.from_numpy(source.float32().copy()) for name, source in sources.items()}, strict=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for prompt in PROMPTS:
        wanted = greedy(reference.eval(), tokenizer.encode(prompt).ids, 16, min_new_tokens=16)
        assert texts_of(ask(loaded, prompt, max_tokens=16, min_tokens=16)) == [tokenizer.decode(wanted)]


@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes(backend: GenerateBackend, tmp_path: Path) -> None:
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "model.gguf").symlink_to(smol_gguf())
    checkpoint = read_generating(tmp_path / "smol", StoreLimits())
    loaded = backend.load(imported(TensorStore(tmp_path / "store"), tmp_path / "smol"))
    spec = checkpoint.spec
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    state = {name: torch.from_numpy(source.float32().copy()) for name, source in checkpoint.sources.items() if "rotary" not in name}
    assert not reference.load_state_dict(state, strict=False).unexpected_keys
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.decode())
    for prompt in ("The capital of France is", "Dear customer, thank you for"):
        wanted = greedy(reference.eval(), tokenizer.encode(prompt).ids, 12)
        assert texts_of(ask(loaded, prompt, max_tokens=12)) == [tokenizer.decode(wanted)]
    assert "Paris" in texts_of(ask(loaded, "The capital of France is", max_tokens=4))[0]
