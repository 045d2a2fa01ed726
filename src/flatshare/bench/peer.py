"""A process that serves one model with transformers' `generate`, as a Triton Python backend would: the peer to be beaten."""

import subprocess
import sys
import time
from pathlib import Path

import orjson

from flatshare.bench.machine import memory_of

_PROGRAM = """
import json, sys, time
import torch
from tokenizers import Tokenizer
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

folder = sys.argv[1]
torch.set_num_threads(2)
config = T5Config.from_pretrained(folder)
with torch.device("meta"):
    model = T5ForConditionalGeneration(config)
    model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
state = load_file(folder + "/model.safetensors")
state |= {"encoder.embed_tokens.weight": state["shared.weight"], "decoder.embed_tokens.weight": state["shared.weight"]}
model.load_state_dict(state, strict=True, assign=True)
model.eval()
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()
for line in sys.stdin:
    asked = json.loads(line)
    ids = torch.tensor([tokenizer.encode(asked["text"]).ids])
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["tokens"],
                                 min_new_tokens=asked["tokens"], do_sample=False)
    print(json.dumps(tokenizer.decode(written[0].tolist())), flush=True)
"""


class TransformersProcess:
    """Texts over stdin and stdout."""

    def __init__(self, checkpoint: Path) -> None:
        self.started_s = time.perf_counter()
        command = [sys.executable, "-c", _PROGRAM, str(checkpoint)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def complete(self, text: str, tokens: int) -> float:
        """Seconds for one answer. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began_s = time.perf_counter()
        self._process.stdin.write(orjson.dumps({"text": text, "tokens": tokens}) + b"\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the transformers process ended: are torch, transformers and safetensors installed (flatshare[test])?")
        return time.perf_counter() - began_s

    def resident_mb(self) -> float:
        """What the process has for itself, mapped files included as far as nobody else has them."""
        return memory_of([self._process.pid]).pss_mb

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
