"""Checkpoints of models that write: what becomes of them, and what is refused with which sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.package.generation.importer import is_generating, read_generating
from flatshare.store.tensors import TensorStore
from tests.checkpoints import import_folder, write_checkpoint
from tests.writers import END, TEMPLATE, byte_tokenizer, greedy, llama, save, t5, write_gguf


def change(folder: Path, **fields: Any) -> Path:
    (folder / "generation_config.json").unlink()  # it would know the end of texts better
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({name: value for name, value in (config | fields).items() if value != "gone"}))
    return folder


def test_a_checkpoint_is_stored_with_what_decides_its_answers(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    folder = save(
        llama(1),
        tmp_path / "a",
        tokenizer_config={"chat_template": TEMPLATE, "bos_token": {"content": "!"}, "eos_token": END},
        generation_config={"eos_token_id": [0, 5, 5]},
    )
    manifest = import_folder(store, folder).manifest
    assert (manifest.family, manifest.backend, manifest.task) == ("llama", "generate", Task.GENERATION)
    spec = manifest.generation
    assert spec is not None
    assert (spec.ends, spec.chat_template, spec.template_tokens) == ((0, 5), TEMPLATE, (("bos_token", "!"), ("eos_token", END)))
    stored = store.stored(manifest.digest)
    assert stored is not None
    assert stored.manifest == manifest, "it comes back from the disk as it was"
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"chat_template": "other"}))
    assert import_folder(store, folder, version="2").manifest.digest != manifest.digest, "another template is another model"


def test_a_fine_tune_shares_what_it_left_alone(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store")
    first = import_folder(store, save(t5(1), tmp_path / "a"))
    tuned = t5(1)
    with torch.no_grad():
        tuned.decoder.block[1].layer[2].DenseReluDense.wo.weight += 0.1
    second = import_folder(store, save(tuned, tmp_path / "b"))
    assert second.new_bytes == 32 * 64 * 4
    assert first.manifest.graph == second.manifest.graph


def test_encoders_are_left_to_their_importer(tmp_path: Path) -> None:
    assert not is_generating(write_checkpoint(tmp_path / "bert"), StoreLimits())


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_gguf_file_becomes_the_model_that_transformers_reads_in_it(tmp_path: Path, kind: str) -> None:
    path = write_gguf(llama(3), tmp_path / "model" / "m.gguf", kind)
    checkpoint = read_generating(path.parent, StoreLimits())
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    for name, tensor in reference.state_dict().items():
        if name in checkpoint.sources:
            np.testing.assert_array_equal(checkpoint.sources[name].float32(), tensor.numpy(), err_msg=name)
    assert checkpoint.spec.chat_template == TEMPLATE
    assert checkpoint.spec.ends == (0,)
    assert len(greedy(reference, byte_tokenizer().encode("the").ids, 4)) == 4


def test_a_gguf_file_has_the_tokenizer_of_its_checkpoint(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = read_generating(write_gguf(llama(3), tmp_path / "m.gguf").parent, StoreLimits())
    found = Tokenizer.from_str(checkpoint.tokenizer.decode())
    for text in ("the order, refund!", "\n é 😀", f"a{END}b"):
        assert found.encode(text).ids == byte_tokenizer().encode(text).ids


T5_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a size that is none": ({"d_model": -1}, "d_model must be an integer"),
    "sizes that the weights do not have": ({"d_ff": 32}, "weights and config do not belong together"),
    "no token that ends a text": ({"eos_token_id": None}, "no text would end"),
    "no token that begins one": ({"decoder_start_token_id": "x"}, "decoder_start_token_id"),
    "an activation of its own": ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish' is not served"),
    "heads of an odd size": ({"d_kv": 12}, "d_kv 12 is not served"),
    "a table of positions that contradicts itself": ({"relative_attention_num_buckets": 30}, "contradicts itself"),
    "tokens that the tokenizer has and the weights have not": ({"vocab_size": 50}, "do not belong together"),
}
LLAMA_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "positions of a kind that changes with the text": ({"rope_parameters": {"rope_type": "longrope"}}, "type 'longrope' are not served"),
    "stretched positions that do not say how far": ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
    "positions that are no object": ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    "a sliding window": ({"sliding_window": 128}, "sliding_window 128 is not served"),
    "biases": ({"attention_bias": True}, "attention_bias True is not served"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not served"),
    "heads that do not share": ({"num_key_value_heads": 3}, "cannot share 3 heads"),
    "heads of an odd size": ({"head_dim": 8}, "heads of size 8"),
}


@pytest.mark.parametrize(("fields", "says"), T5_WRONG.values(), ids=T5_WRONG.keys())
def test_a_t5_that_cannot_be_served_is_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises((BadPackage, UnsupportedModel), match=says):
        import_folder(TensorStore(tmp_path / "store"), change(save(t5(1), tmp_path / "m"), **fields))


@pytest.mark.parametrize(("fields", "says"), LLAMA_WRONG.values(), ids=LLAMA_WRONG.keys())
def test_a_llama_that_cannot_be_served_is_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises((BadPackage, UnsupportedModel), match=says):
        import_folder(TensorStore(tmp_path / "store"), change(save(llama(1), tmp_path / "m"), **fields))


@pytest.mark.parametrize("cut", [0, 3, 100, 2000])
def test_a_damaged_gguf_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_gguf(llama(3), tmp_path / "m" / "m.gguf")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadPackage, match=r"m\.gguf"):
        read_generating(path.parent, StoreLimits())


def test_of_several_gguf_files_none_is_taken(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadPackage, match="2 GGUF files"):
        read_generating(tmp_path, StoreLimits())


def test_a_template_that_cannot_be_read_is_refused_at_the_import(tmp_path: Path) -> None:
    folder = save(llama(1), tmp_path / "m", tokenizer_config={"chat_template": "{% for %}"})
    with pytest.raises(BadPackage, match="chat template"):
        import_folder(TensorStore(tmp_path / "store"), folder)
