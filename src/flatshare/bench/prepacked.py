"""`flatshare bench prepacked`: how much faster prepacked weights are than mapped ones on this machine: engines alone, and two servers.

ONNX Runtime's own prepacking is measured beside the copies that the server makes (instance/backends/prepacked.py), to show what they are
compared with in docs/decisions/0087-prepacked-copies.md.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from flatshare.bench import promoted
from flatshare.bench.numbers import median
from flatshare.bench.story import Results, Steps
from flatshare.bench.tenants import base_checkpoint, tenants, write_tenants
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import StoredModel
from flatshare.instance.backends import prepacked
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.instance.backends.prepacked import Copier
from flatshare.instance.backends.sessions import Architecture, session_options
from flatshare.instance.books import anonymous_bytes
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore

TARGETS = promoted.TARGETS
_SERVED = 8
_TOKENS = (8, 16, 30, 60, 120, 250)
Feeds = Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]
Runner = Callable[[Feeds], Any]
"""From token ids to vectors."""
Maker = Callable[[StoredModel, MappedModel], Runner]


def run(folder: Path, models: int, runs: int, begin: Steps) -> dict[str, float]:
    """Both parts; the servers serve at most eight of the models. Without OpenVINO only ONNX Runtime's own prepacking is measured."""
    results = Results()
    results.values |= engines(folder, models, runs, begin)
    promoted.run(folder, folder / "models", tenants(models)[: min(models, _SERVED)], 2 * runs, results, begin)
    return results.values


def engines(folder: Path, models: int, runs: int, begin: Steps) -> dict[str, float]:
    """Medians over alternating runs of `models` models in turn, one thread, tokens ready."""
    stored = _imported(folder, models, begin)
    backend = MappedBackend(concurrent_runs=1)
    mapped = [backend.load(model) for model in stored]
    makers: dict[str, Maker] = {"onnxruntime": lambda one, loaded: _session_runner(own_session(one, loaded, folder))}
    if prepacked.is_available():
        makers["copy"] = partial(_copy_runner, Copier())
    runners: dict[str, list[Runner]] = {"mapped": [_mapped_runner(model) for model in mapped]}
    results: dict[str, float] = {}
    for name, make in makers.items():
        before, began_s = anonymous_bytes(), time.perf_counter()
        runners[name] = [make(one, loaded) for one, loaded in zip(stored, mapped, strict=True)]
        results[f"{name}_create_ms"] = 1e3 * (time.perf_counter() - began_s) / models
        for runner in runners[name]:
            runner(_feeds(mapped[0]._architecture, 30, seed=0))  # a copy packs some at its first run
        results[f"{name}_mb_per_model"] = (anonymous_bytes() - before) / models / 1e6
    step = begin("runs, in turn", len(_TOKENS))
    for tokens in _TOKENS:
        took_ms = _compare(runners, mapped[0]._architecture, tokens, runs)
        results |= {f"{name}_{tokens}_ms": value for name, value in took_ms.items()}
        results |= {f"{name}_speedup_{tokens}": took_ms["mapped"] / took_ms[name] for name in makers}
        step()
    return {key: round(value, 3) for key, value in results.items()}


def own_session(stored: StoredModel, model: MappedModel, folder: Path) -> ort.InferenceSession:
    """The model's graph with its mapped weights as initializers, which ONNX Runtime packs for its own kernels."""
    names, options = model._architecture.weight_names, _packing_options(folder)
    graph = onnx.load_model_from_string(Path(stored.graph_path).read_bytes())
    runs = [value for value in graph.graph.input if value.name not in names]
    del graph.graph.input[:]
    graph.graph.input.extend(runs)
    for name, weight in zip(names, model._weights, strict=True):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape(), data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", "0"), ("length", str(4 * int(np.prod(weight.shape()))))):
            tensor.external_data.add(key=key, value=value)
        graph.graph.initializer.append(tensor)
        options.add_initializer(name, weight)  # takes the place of what the graph says that a file holds
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _packing_options(folder: Path) -> ort.SessionOptions:
    options = session_options(is_prepacked=True)
    (folder / "weights").touch()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options


def _mapped_runner(model: MappedModel) -> Runner:
    architecture, bindings = model._architecture, model._architecture.bind(model._weights)
    return lambda feeds: architecture.run(bindings, feeds)


def _session_runner(session: ort.InferenceSession) -> Runner:
    return lambda feeds: session.run(None, feeds)[0]


def _copy_runner(copier: Copier, stored: StoredModel, model: MappedModel) -> Runner:
    return copier.copy(Path(stored.graph_path), model.named_weights()).run


def _compare(runners: Mapping[str, list[Runner]], architecture: Architecture, tokens: int, runs: int) -> dict[str, float]:
    """Median milliseconds of each, and a check that all answer alike."""
    took: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(runs):
        feeds, answers = _feeds(architecture, tokens, number), []
        for name, models in runners.items():
            began_s = time.perf_counter()
            answers.append(models[number % len(models)](feeds))
            took[name].append(time.perf_counter() - began_s)
        for answer in answers[1:]:
            np.testing.assert_allclose(answer, answers[0], atol=1e-5)
    return {name: 1e3 * median(seconds) for name, seconds in took.items()}


def _feeds(architecture: Architecture, tokens: int, seed: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    ids = np.random.default_rng(seed).integers(1_000, 20_000, (1, tokens), np.int64)
    ready = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    return {name: ready[name] for name in architecture.run_inputs}


def _imported(folder: Path, models: int, begin: Steps) -> list[StoredModel]:
    step, store = begin("importing", models), TensorStore(folder / "store")
    found = []
    for tenant in write_tenants(base_checkpoint(), folder / "models", tenants(models)[:models]):
        place = folder / "models" / tenant.target
        report = import_checkpoint(store, place, ArtifactUri(f"file://{place}"), "1", StoreLimits())
        stored = store.stored(report.manifest.digest)
        assert stored is not None
        found.append(stored)
        step()
    return found
