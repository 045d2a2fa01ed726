"""`flatshare bench complete`: completions by per-customer models of T5-small's size, beside a transformers process per model."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from tokenizers import Tokenizer

from flatshare.bench.flan import write_flan
from flatshare.bench.numbers import median, percentile
from flatshare.bench.peer import TransformersProcess
from flatshare.bench.server import PlainCaller, RunningServer, running_server
from flatshare.bench.story import Results, Steps
from flatshare.package.weights import WeightsFile

NEW_TOKENS = 16
KEYSTROKE_TOKENS = 8
LENGTHS = (30, 250, 550)
ROOMY = "6GiB"
_NOISE = 0.02
_TUNED = tuple(f"decoder.block.{layer}." for layer in range(4, 8))
_WORDS = (  # noqa: SIM905  # read as a text
    "the order has not been sent and I would like to know when it will be here please help me with this problem we need the number for our "
    "account can you check it for me thank you very much as it was to come last week but there was no time"
).split()  # fmt: skip
_TYPED = (
    "Thank you for your message. Your order will be sent today and you will have it in two days. If you need more help, please call us."
)

TARGETS: dict[str, float] = {
    "complete_30_ms": 160, "complete_250_ms": 220, "complete_550_ms": 320, "cold_start_p50_ms": 250, "keystroke_p95_ms": 120,
    "batching_gain": 3.0,
}  # fmt: skip
AT_LEAST = {"batching_gain"}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured; `quick` is for trying the benchmark out, not for figures."""

    models: int = 6
    calls: int = 40
    cold_samples: int = 30
    keystrokes: int = 100
    rounds: int = 5


QUICK = Scale(models=2, calls=5, cold_samples=6, keystrokes=20, rounds=2)


def run(folder: Path, scale: Scale, begin: Steps) -> dict[str, float]:
    """Measure everything in `folder`, which should be on a local disk with 8 GB free."""
    results = Results()
    step = begin("writing checkpoints", 2 * scale.models + 1)
    base = write_flan(folder / "base")
    step()
    for kind in ("fp32", "compact"):
        for _ in _write_tenants(base, folder / kind, scale.models, is_compact=kind == "compact"):
            step()
    texts = Texts(base / "tokenizer.json")
    for kind, prefix in (("fp32", ""), ("compact", "compact_")):
        with running_server(folder / f"data-{kind}", folder / kind, ROOMY) as server:
            _measure(server, texts, scale, Key(results, prefix, kind), begin)
    results.put("compact_agreement", _agreement(folder, texts, begin), 3)
    _peer(folder / "fp32" / "tenant-0", texts, scale, results, begin)
    return results.values


class Texts:
    """Texts of a given number of T5's tokens, its end token included."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._words = [word for word in _WORDS if len(self._tokenizer.encode(word, add_special_tokens=False).ids) == 1]

    def of(self, tokens: int, seed: int) -> str:
        text = " ".join(np.random.default_rng(seed).choice(self._words, tokens - 1))
        assert len(self._tokenizer.encode(text).ids) == tokens, "the words are no single tokens. This is a bug."
        return text


@dataclass(frozen=True, slots=True)
class Key:
    """Where figures go: fp32's under their own names, the compact variant's with a prefix."""

    results: Results
    prefix: str
    kind: str

    def put(self, name: str, value: float, digits: int = 1) -> None:
        self.results.put(self.prefix + name, value, digits)


def body_of(text: str, tokens: int, **parameters: object) -> bytes:
    return orjson.dumps({"inputs": text, "parameters": {"max_tokens": tokens, "min_tokens": tokens, **parameters}})


def _measure(server: RunningServer, texts: Texts, scale: Scale, key: Key, begin: Steps) -> None:
    names = [f"tenant-{index}" for index in range(scale.models)]
    _memory(server, texts, names, key, begin)
    _latency(server, texts, scale, key, begin)
    _keystrokes(server, texts, scale, key, begin)
    _together(server, texts, scale, key, begin)
    _cold(server, texts, scale, key, begin)


def _memory(server: RunningServer, texts: Texts, names: list[str], key: Key, begin: Steps) -> None:
    """Private memory that each further model costs, and what its weights take if no other model shares them."""
    step = begin(f"{key.kind}: memory", len(names) + 1)
    with PlainCaller.to_port(server.port) as caller:
        for name in names:  # import all, so that what follows is loading only
            caller.invoke(name, body_of(texts.of(30, 0), 1))
        server.unload_all()
        caller.invoke(names[0], body_of(texts.of(550, 0), NEW_TOKENS))
        step()
        before, mapped_before = server.memory().anonymous_mb, server.status()["balance"]["mapped"]
        for name in names[1:]:
            caller.invoke(name, body_of(texts.of(550, 0), NEW_TOKENS))
            step()
    after, balance = server.memory().anonymous_mb, server.status()["balance"]
    others = max(1, len(names) - 1)
    private_mb, alone_mb = (after - before) / others, mapped_before / 1e6
    suffix = "" if key.kind == "fp32" else "_compact"
    shared_mb = (balance["mapped"] - mapped_before) / 1e6 / others
    key.results.put(f"anonymous_mb_per_model{suffix}", private_mb, 2)
    key.results.put(f"resident_mb_per_model{suffix}", private_mb + alone_mb, 1)
    key.results.put(f"resident_mb_per_model_half_frozen{suffix}", private_mb + shared_mb, 1)
    key.results.put(f"models_in_4gib{suffix}", (2**32 / 1e6 - before) // (private_mb + alone_mb), 0)
    key.results.put(f"models_in_4gib_half_frozen{suffix}", 1 + (2**32 / 1e6 - before - alone_mb) // (private_mb + shared_mb), 0)


def _latency(server: RunningServer, texts: Texts, scale: Scale, key: Key, begin: Steps) -> None:
    step = begin(f"{key.kind}: 30, 250, 550 tokens", len(LENGTHS))
    with PlainCaller.to_port(server.port) as caller:
        for tokens in LENGTHS:
            took = [_timed(caller, "tenant-0", body_of(texts.of(tokens, seed), NEW_TOKENS)) for seed in range(scale.calls)]
            key.put(f"complete_{tokens}_ms", 1e3 * median(took))
            step()


def _keystrokes(server: RunningServer, texts: Texts, scale: Scale, key: Key, begin: Steps) -> None:
    """Somebody types an answer to a text of 250 tokens: at each key, eight tokens more."""
    step = begin(f"{key.kind}: keystrokes", scale.keystrokes)
    took = []
    with PlainCaller.to_port(server.port) as caller:
        text = texts.of(250, 1)
        for length in range(1, scale.keystrokes + 1):
            typed = _TYPED[: 1 + length % len(_TYPED)]
            took.append(_timed(caller, "tenant-0", body_of(text, KEYSTROKE_TOKENS, typed=typed, session="agent-1")))
            step()
    key.put("keystroke_p50_ms", 1e3 * median(took[1:]))
    key.put("keystroke_p95_ms", 1e3 * percentile(took[1:], 0.95))  # the first reads the text


def _together(server: RunningServer, texts: Texts, scale: Scale, key: Key, begin: Steps) -> None:
    """The same calls by one caller after the other, and by eight at once."""
    step = begin(f"{key.kind}: 8 callers", 2 * scale.rounds)
    rates = {}
    for callers in (1, 8):
        found = []
        for turn in range(scale.rounds):
            bodies = [body_of(texts.of(30, 100 * turn + index), NEW_TOKENS) for index in range(16)]
            found.append(16 * NEW_TOKENS / _at_once(server, bodies, callers))
            step()
        rates[callers] = median(found)
    key.put("tokens_per_s_1_caller", rates[1])
    key.put("tokens_per_s_8_callers", rates[8])
    key.put("batching_gain", rates[8] / rates[1], 2)


def _at_once(server: RunningServer, bodies: list[bytes], callers: int) -> float:
    """Seconds for all, each caller taking the next that is left."""
    left = iter(bodies)
    lock = threading.Lock()

    def work() -> None:
        with PlainCaller.to_port(server.port) as caller:
            while True:
                with lock:
                    body = next(left, None)
                if body is None:
                    return
                caller.invoke("tenant-0", body)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def _cold(server: RunningServer, texts: Texts, scale: Scale, key: Key, begin: Steps) -> None:
    """From nothing in memory to a whole answer of 16 tokens, pages warm."""
    step = begin(f"{key.kind}: cold starts", scale.cold_samples)
    took = []
    with PlainCaller.to_port(server.port) as caller:
        for index in range(scale.cold_samples):
            server.unload_all()
            took.append(_timed(caller, f"tenant-{index % scale.models}", body_of(texts.of(30, index), NEW_TOKENS)))
            step()
    key.put("cold_start_p50_ms", 1e3 * median(took))
    key.put("cold_start_p99_ms", 1e3 * percentile(took, 0.99))


def _agreement(folder: Path, texts: Texts, begin: Steps) -> float:
    """The share of tokens' words that the compact variant writes as fp32 does, from the front, over greedy texts of 16 tokens."""
    prompts = [f"summarize: {texts.of(30, seed)}" for seed in range(40)]
    written: list[list[str]] = []
    step = begin("compact: agreement", 2)
    for kind in ("fp32", "compact"):
        with running_server(folder / f"data-{kind}", folder / kind, ROOMY) as server, PlainCaller.to_port(server.port) as caller:
            bodies = [orjson.dumps({"inputs": prompt, "parameters": {"max_tokens": NEW_TOKENS}}) for prompt in prompts]
            written.append([orjson.loads(caller.invoke("tenant-0", body))["texts"][0] for body in bodies])
        step()
    return float(np.mean([_same_front(first.split(), second.split()) for first, second in zip(*written, strict=True)]))


def _same_front(first: list[str], second: list[str]) -> float:
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same / max(len(first), len(second), 1)


def _peer(checkpoint: Path, texts: Texts, scale: Scale, results: Results, begin: Steps) -> None:
    """transformers' `generate` in a process of its own: what one model costs when each has its own."""
    step = begin("transformers, a process per model", len(LENGTHS) + 1)
    with closing(TransformersProcess(checkpoint)) as peer:
        peer.complete(texts.of(30, 0), NEW_TOKENS)
        results.put("peer_cold_start_ms", 1e3 * (time.perf_counter() - peer.started_s), 0)
        step()
        for tokens in LENGTHS:
            took = [peer.complete(texts.of(tokens, seed), NEW_TOKENS) for seed in range(max(5, scale.calls // 4))]
            results.put(f"peer_complete_{tokens}_ms", 1e3 * median(took), 1)
            step()
        results.put("peer_mb_per_model", peer.resident_mb(), 0)


def _timed(caller: PlainCaller, target: str, body: bytes) -> float:
    began_s = time.perf_counter()
    caller.invoke(target, body)
    return time.perf_counter() - began_s


def _write_tenants(base: Path, folder: Path, count: int, *, is_compact: bool) -> Iterator[None]:
    """As after a fine-tuning of the decoder's upper half."""
    for index in range(count):
        write_tuned(base, folder / f"tenant-{index}", index, _TUNED, is_compact=is_compact)
        yield


def write_tuned(base: Path, place: Path, seed: int, parts: tuple[str, ...] = ("",), *, is_compact: bool = False) -> None:
    """A checkpoint whose matrices in these parts, or all of them, carry noise of 2 % of their spread. One that exists is left alone."""
    if place.exists():
        return
    weights = WeightsFile(base / "model.safetensors")
    fresh = place.with_name(f".{place.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(base, fresh)
    if is_compact:
        (fresh / "flatshare.json").write_bytes(b'{"weights": "int8"}')
    random = np.random.default_rng(seed)
    with (fresh / "model.safetensors").open("r+b") as file:
        for entry in weights.entries.values():
            if entry.name.startswith(parts) and len(entry.shape) == 2:
                tensor = weights.float32(entry)
                file.seek(entry.begin)
                file.write((tensor + random.standard_normal(tensor.shape, np.float32) * (_NOISE * float(tensor.std()))).tobytes())
    fresh.rename(place)
