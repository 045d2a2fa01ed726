"""The memory figures on other servers: real Triton's Python backend and MLServer, with the same models in the same engine.

A tenant's model is one ONNX file with its weights inside, as one would export it, run by ONNX Runtime with one thread and its defaults.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import onnx
import orjson
from onnx import numpy_helper

from flatshare.bench.machine import family, memory_of
from flatshare.bench.numbers import percentile
from flatshare.bench.server import PlainCaller
from flatshare.bench.tenants import text_of
from flatshare.bench.triton_peer import _free_ports, triton_server
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.store.tensors import TensorStore

CGROUP = Path("/sys/fs/cgroup/memory")
_GIB = 2**30
_UNLOADED = 8
_MOST = 16
Steps = Callable[[str, int], Callable[[], None]]

_ENCODER = """
import os

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Encoder:
    def __init__(self, folder):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.names = {value.name for value in self.session.get_inputs()}
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(512)

    def __call__(self, text):
        ids = np.array([self.tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
        return self.session.run(None, {name: feeds[name] for name in self.names})[0]
"""
_TRITON_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.encode = Encoder(args["model_repository"] + "/weights")

    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[0].decode()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("VECTOR", self.encode(text)[0])]))
        return answers
"""
_TRITON_CONFIG = """backend: "python"
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "VECTOR" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
_MLSERVER_RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


class Runtime(MLModel):
    async def load(self):
        self.encode = Encoder(self.settings.parameters.uri)
        return True

    async def unload(self):
        self.encode = None
        return True

    async def predict(self, payload):
        text = StringCodec.decode_input(payload.inputs[0])[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("VECTOR", self.encode(text))])
"""


class Peer(Protocol):
    """Another server, as this benchmark asks it. Each call raises RuntimeError or OSError if it fails."""

    @property
    def pid(self) -> int: ...
    def load(self, name: str) -> None: ...
    def unload(self, name: str) -> None: ...
    def ask(self, name: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Peers:
    """The virtual environments of those that take part."""

    triton: Path | None = None
    mlserver: Path | None = None


NO_PEERS = Peers()
PeerMaker = Callable[[Sequence[str]], AbstractContextManager[Peer]]
"""Starts it, with words that are to stand before its command."""


def run(folder: Path, store_dir: Path, peers: Peers, begin: Steps) -> dict[str, float]:
    """`memory_after_unload` and `models_in_1gib` of each peer whose virtual environment is given."""
    if peers == NO_PEERS:
        return {}
    store = TensorStore(store_dir)
    models = [found for model in store.catalog.models()[:_MOST] if (found := store.stored(model.manifest.digest))]
    names = [f"m{number}" for number in range(len(models))]
    step = begin("writing models for the peers", len(models))
    for name, model in zip(names, models, strict=True):
        _write(folder / "weights" / name, model)
        step()
    results: dict[str, float] = {}
    if (triton := peers.triton) is not None:
        results |= _measure("triton", lambda before: _triton(triton, folder, names, before), names, begin)
    if (mlserver := peers.mlserver) is not None:
        results |= _measure("mlserver", lambda before: _mlserver(mlserver, folder, names, before), names, begin)
    return results


def _measure(peer: str, start: PeerMaker, names: list[str], begin: Steps) -> dict[str, float]:
    step = begin(f"{peer}: unloading, and 1 GiB", 4)
    with start(()) as server:
        empty = _settled_mb(server)
        marks = []
        for group in (names[:1], names[:_UNLOADED]):
            for name in group:
                server.load(name)
                for tokens in (30, 512):
                    server.ask(name, text_of(tokens, 1))
            loaded = _settled_mb(server)
            for name in group:
                server.unload(name)
            marks.append(_settled_mb(server))
        step()
    results = {
        f"{peer}_empty_mb": empty,
        f"{peer}_mb_per_model": (loaded - empty) / _UNLOADED,
        f"{peer}_after_unload_one_mb": marks[0],
        f"{peer}_after_unload_all_mb": marks[1],
        f"{peer}_memory_after_unload_ratio": marks[1] / marks[0],
    }
    if not (CGROUP / "cgroup.procs").exists():
        return results
    with _limited(_GIB) as inside, start(inside) as server:
        fitting = names[: _how_many(server, names)]
    step()
    with start(()) as server:
        free = _p99_ms(server, fitting)
    step()
    with _limited(_GIB) as inside, start(inside) as server:
        limited = _p99_ms(server, fitting)
    step()
    results[f"{peer}_p99_in_1gib_ratio"] = limited / free
    results[f"{peer}_models_in_1gib"] = len(fitting) if limited <= 2 * free else 0
    return {key: round(value, 3) for key, value in results.items()}


def _how_many(server: Peer, names: list[str]) -> int:
    """Load one more, and ask all of them, until something fails; the one that made it fail does not fit."""
    for count, name in enumerate(names):
        try:
            server.load(name)
            for resident in names[: count + 1]:
                server.ask(resident, text_of(30, 1))
        except (RuntimeError, OSError):
            return count
    return len(names)


def _p99_ms(server: Peer, names: list[str]) -> float:
    """One caller, all models in turn; the first round is not counted."""
    for name in names:
        server.load(name)
        server.ask(name, text_of(30, 1))
    took = []
    for number in range(200):
        began_s = time.perf_counter()
        server.ask(names[number % len(names)], text_of(30, number))
        took.append(1e3 * (time.perf_counter() - began_s))
    return percentile(took, 0.99)


def _settled_mb(server: Peer) -> float:
    """Private memory of all its processes, once it no longer falls: an unload may go on behind the answer."""
    before = float("inf")
    for _ in range(30):
        threading.Event().wait(0.5)
        with suppress(OSError):  # a process that ended while we looked
            now = memory_of(family(server.pid)).anonymous_mb
            if now > before - 1:
                return now
            before = now
    return before


@contextmanager
def _limited(limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """A memory cgroup of the first version; yields what to put before a command that is to run in it."""
    group = CGROUP / f"flatshare-{uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
                break
            threading.Event().wait(0.1)


def _write(folder: Path, model: StoredModel) -> None:
    """The model's graph with its weights inside, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = onnx.load_model_from_string(Path(model.graph_path).read_bytes())
    loaded = MappedBackend(concurrent_runs=1).load(model)
    names = loaded._architecture.weight_names
    for name, weight in zip(names, loaded._weights, strict=True):
        graph.graph.initializer.append(numpy_helper.from_array(weight.numpy(), name))
    inputs = [value for value in graph.graph.input if value.name not in names]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    shutil.copy(model.tokenizer_path, folder / "tokenizer.json")


def _question(text: str) -> dict[str, Any]:
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": [text]}]}


@dataclass(frozen=True, slots=True)
class _Triton:
    """By its SageMaker port."""

    pid: int
    port: int
    repository: Path

    def load(self, name: str) -> None:
        _must(self.port, "POST", "/models", {"model_name": name, "url": str(self.repository / name)})

    def unload(self, name: str) -> None:
        _must(self.port, "DELETE", f"/models/{name}", None)

    def ask(self, name: str, text: str) -> None:
        _must(self.port, "POST", f"/models/{name}/invoke", _question(text))


@contextmanager
def _triton(venv: Path, folder: Path, names: list[str], before: Sequence[str]) -> Iterator[_Triton]:
    repository = folder / "triton-models"
    for name in names:
        place = repository / name / "encoder"
        (place / "1").mkdir(parents=True, exist_ok=True)
        (place / "config.pbtxt").write_text(_TRITON_CONFIG)
        (place / "1" / "model.py").write_text(_ENCODER + _TRITON_MODEL)
        with suppress(FileExistsError):
            (place / "weights").symlink_to(folder / "weights" / name)
    work = folder / f"triton-{uuid4().hex[:8]}"
    with triton_server(venv, work, before=before) as server:
        yield _Triton(server.pid, server.sagemaker_port, repository)


@dataclass(frozen=True, slots=True)
class _MLServer:
    """By its repository API."""

    pid: int
    port: int

    def load(self, name: str) -> None:
        _must(self.port, "POST", f"/v2/repository/models/{name}/load", {})

    def unload(self, name: str) -> None:
        _must(self.port, "POST", f"/v2/repository/models/{name}/unload", {})

    def ask(self, name: str, text: str) -> None:
        _must(self.port, "POST", f"/v2/models/{name}/infer", _question(text))


@contextmanager
def _mlserver(venv: Path, folder: Path, names: list[str], before: Sequence[str]) -> Iterator[_MLServer]:
    root = folder / "mlserver-models"
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        settings = {"name": name, "implementation": "peer_runtime.Runtime", "parameters": {"uri": str(folder / "weights" / name)}}
        (root / name / "model-settings.json").write_bytes(orjson.dumps(settings))
    (root / "peer_runtime.py").write_text(_ENCODER + _MLSERVER_RUNTIME)
    port, grpc, metrics = _free_ports(3)
    (root / "settings.json").write_bytes(
        orjson.dumps(
            {
                "host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics,
                "load_models_at_startup": False, "parallel_workers": 1,
            }
        )
    )  # fmt: skip
    command = [*before, str(venv / "bin" / "mlserver"), "start", str(root)]
    with (folder / "mlserver.log").open("ab") as log:
        environment = os.environ | {"PYTHONPATH": str(root), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        _wait_until_ready(process, port)
        yield _MLServer(process.pid, port)
    finally:
        others = family(process.pid)[1:]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in others:  # its own children, which it may leave behind if it was killed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"mlserver ended with {process.returncode}: see mlserver.log in the work folder")
        with suppress(OSError, RuntimeError):
            _must(port, "GET", "/v2/health/live", None)
            return
        threading.Event().wait(0.1)
    raise RuntimeError("mlserver was not ready within a minute")


def _must(port: int, method: str, path: str, body: object) -> bytes:
    with PlainCaller.to_port(port) as caller:
        status, answer = caller.request(method, path, b"" if body is None else orjson.dumps(body))
    if status != 200:
        raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
    return answer
