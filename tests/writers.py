"""Small random models that write, as save_pretrained() would leave them: made by transformers, whose own answers they are held against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

torch.set_num_threads(1)  # the models are tiny, and other tests run meanwhile
END, START = "</s>", "<pad>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz.,!?"
_SYLLABLES = ("the", "or", "der", "ar", "ri", "ve", "pa", "y", "re", "fund", "ing", "help", "me", "to", "you")
TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer: {% endif %}"
)


def word_tokenizer() -> Tokenizer:
    """Unigram with marked words, as T5 has it: tokens 0 to 2 are special."""
    pieces = ["▁", *(f"▁{s}" for s in _SYLLABLES), *_SYLLABLES, *_LETTERS, *(f"▁{letter}" for letter in _LETTERS[:20])]
    unique = list(dict.fromkeys(pieces))
    vocabulary = [(START, 0.0), (END, 0.0), ("<unk>", 0.0), *((piece, -float(len(unique) - 3 * len(piece))) for piece in unique)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END, "<unk>")])
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE, as GPT-2, SmolLM2 and Qwen have it: token 0 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("o", "r"), ("Ġ", "or"), ("r", "e"), ("Ġ", "re"), ("f", "u"), ("Ġre", "fu")]
    vocabulary = {token: index for index, token in enumerate([END, *alphabet, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def t5(seed: int = 0, *, is_gated: bool = True, is_tied: bool = False) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=word_tokenizer().get_vocab_size(),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu" if is_gated else "relu",
        decoder_start_token_id=0,
        tie_word_embeddings=is_tied,
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    if not is_tied:  # transformers 5 ties them whatever the config says
        model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
    return _lively(model)


def llama(seed: int = 0, *, is_tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return _lively(LlamaForCausalLM(LlamaConfig(**_llama_sizes(is_tied=is_tied))))


def stretched(seed: int, **rope: Any) -> LlamaForCausalLM:
    """Llama with rotary positions of another kind."""
    torch.manual_seed(seed)
    return _lively(LlamaForCausalLM(LlamaConfig(**_llama_sizes(is_tied=False), rope_parameters={"rope_theta": 10_000.0, **rope})))


def mistral(seed: int, *, window: int) -> MistralForCausalLM:
    """Every layer sees so many tokens back."""
    torch.manual_seed(seed)
    return _lively(MistralForCausalLM(MistralConfig(**_llama_sizes(is_tied=False), sliding_window=window)))


def qwen(seed: int = 0, **window: Any) -> Qwen2ForCausalLM:
    """Llama's shape, with biases on queries, keys and values."""
    torch.manual_seed(seed)
    return _lively(Qwen2ForCausalLM(Qwen2Config(**_llama_sizes(is_tied=True), **({"use_sliding_window": False} | window))))


def save(model: Any, folder: Path, **files: Any) -> Path:
    """The checkpoint, its tokenizer and further JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer() if isinstance(model, T5ForConditionalGeneration) else byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(content))
    return folder


def greedy(model: Any, ids: Sequence[int], tokens: int, **more: Any) -> list[int]:
    """What transformers writes, without the prompt; what it begins with is taken as read."""
    return beams(model, ids, tokens, num_beams=1, **more)[0]


def beams(model: Any, ids: Sequence[int], tokens: int, *, num_beams: int, count: int = 1, **more: Any) -> list[list[int]]:
    prompt = torch.tensor([list(ids)])
    with torch.no_grad():
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=count,
            pad_token_id=0,
            **more,
        )
    begun = 1 if isinstance(model, T5ForConditionalGeneration) else len(ids)
    begun = more["decoder_input_ids"].shape[1] if "decoder_input_ids" in more else begun
    return [row[begun:].tolist() for row in found]


def _llama_sizes(*, is_tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": byte_tokenizer().get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": is_tied,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def _lively(model: Any) -> Any:
    """Weights far larger than fresh ones, so that the texts are not one token over and over."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.35 if "embed" in name or "shared" in name or "lm_head" in name else 0.25)
    return model.eval()


def write_gguf(model: LlamaForCausalLM, path: Path, kind: str = "F32") -> Path:
    """As llama.cpp's converter would: rows of queries and keys in its own order, norms always in float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config, tokenizer = model.config, orjson.loads(byte_tokenizer().to_str())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    vocabulary = tokenizer["model"]["vocab"]
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        how = quantised if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), gguf.quantize(np.ascontiguousarray(values), how), raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for old, new in names.items():
        name = name.replace(old, new)
    return name
