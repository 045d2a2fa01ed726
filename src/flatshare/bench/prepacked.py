"""`flatshare bench prepacked`: how much faster prepacked weights, in a session of their own, would be than mapped ones on this machine.

There is no such tier yet: docs/decisions/0069-no-prepacked-tier.md says why, from these figures. OpenVINO is measured beside ONNX Runtime
if it is installed: `pip install openvino`.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from flatshare.bench.numbers import median
from flatshare.bench.tenants import base_checkpoint, tenants, write_tenants
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.instance.backends.sessions import Architecture, session_options
from flatshare.instance.books import anonymous_bytes
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore

TARGETS = {"prepacked_speedup": 1.3}
_TOKENS = (8, 16, 30, 60, 120, 250)
Steps = Callable[[str, int], Callable[[], None]]
Feeds = Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]
Runner = Callable[[Feeds], Any]
"""From token ids to vectors."""
Maker = Callable[[StoredModel, MappedModel], Runner]


def run(folder: Path, models: int, runs: int, begin: Steps) -> dict[str, float]:
    """Medians over alternating runs of `models` models in turn, one thread, tokens ready: the engine alone."""
    stored = _imported(folder, models, begin)
    backend = MappedBackend(concurrent_runs=1)
    mapped = [backend.load(model) for model in stored]
    makers: dict[str, Maker] = {"prepacked": lambda one, loaded: _session_runner(own_session(one, loaded, folder))}
    if find_spec("openvino") is not None:
        openvino: Any = import_module("openvino")
        makers["openvino"] = partial(_openvino_runner, openvino, openvino.Core())
    runners: dict[str, list[Runner]] = {"mapped": [_mapped_runner(model) for model in mapped]}
    results: dict[str, float] = {}
    for name, make in makers.items():
        before, began_s = anonymous_bytes(), time.perf_counter()
        runners[name] = [make(one, loaded) for one, loaded in zip(stored, mapped, strict=True)]
        results[f"{name}_create_ms"] = 1e3 * (time.perf_counter() - began_s) / models
        for runner in runners[name]:
            runner(_feeds(mapped[0]._architecture, 30, seed=0))  # OpenVINO packs at the first run
        results[f"{name}_mb_per_model"] = (anonymous_bytes() - before) / models / 1e6
    step = begin("runs, in turn", len(_TOKENS))
    for tokens in _TOKENS:
        took_ms = _compare(runners, mapped[0]._architecture, tokens, runs)
        results |= {f"{name}_{tokens}_ms": value for name, value in took_ms.items()}
        results |= {f"{name}_speedup_{tokens}": took_ms["mapped"] / took_ms[name] for name in makers}
        step()
    results["prepacked_speedup"] = results["prepacked_speedup_30"]
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


def _openvino_runner(openvino: Any, core: Any, stored: StoredModel, model: MappedModel) -> Runner:
    """Compiled with constants that point into the mapped packs, so that only what is packed is copied. One thread, 32 bits."""
    graph = core.read_model(stored.graph_path)
    weights = {name: weight.numpy() for name, weight in zip(model._architecture.weight_names, model._weights, strict=True)}
    for parameter in graph.get_parameters():
        weight = weights.get(parameter.output(0).any_name)
        if weight is not None:
            parameter.output(0).replace(openvino.op.Constant(weight, shared_memory=True).output(0))
            graph.remove_parameter(parameter)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    return lambda feeds: next(iter(request.infer(feeds).values()))


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
