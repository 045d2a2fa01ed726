"""`flatshare bench prepacked`: how much faster prepacked weights, in a session of their own, would be than mapped ones on this machine.

There is no such tier: docs/decisions/0069-no-prepacked-tier.md says why, from these figures.
"""

import time
from collections.abc import Callable
from pathlib import Path

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


def run(folder: Path, models: int, runs: int, begin: Steps) -> dict[str, float]:
    """Medians over alternating runs of `models` models in turn, one thread, tokens ready: the engine alone."""
    stored = _imported(folder, models, begin)
    backend = MappedBackend(concurrent_runs=1)
    mapped = [backend.load(model) for model in stored]
    before, began_s = anonymous_bytes(), time.perf_counter()
    packed = [own_session(model, loaded, folder) for model, loaded in zip(stored, mapped, strict=True)]
    results = {
        "prepacked_create_ms": 1e3 * (time.perf_counter() - began_s) / models,
        "prepacked_mb_per_model": (anonymous_bytes() - before) / models / 1e6,
    }
    step = begin("runs, mapped and prepacked in turn", len(_TOKENS))
    for tokens in _TOKENS:
        mapped_ms, packed_ms = _compare(mapped, packed, tokens, runs)
        results |= {f"mapped_{tokens}_ms": mapped_ms, f"prepacked_{tokens}_ms": packed_ms, f"speedup_{tokens}": mapped_ms / packed_ms}
        step()
    results["prepacked_speedup"] = results["speedup_30"]
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


def _compare(mapped: list[MappedModel], packed: list[ort.InferenceSession], tokens: int, runs: int) -> tuple[float, float]:
    """Median milliseconds of both, and a check that they answer alike."""
    took: tuple[list[float], list[float]] = ([], [])
    bindings = [model._architecture.bind(model._weights) for model in mapped]
    for number in range(runs):
        index = number % len(mapped)
        feeds = _feeds(mapped[index]._architecture, tokens, number)
        began_s = time.perf_counter()
        ours = mapped[index]._architecture.run(bindings[index], feeds)
        middle_s = time.perf_counter()
        [theirs] = packed[index].run(None, feeds)
        took[1].append(time.perf_counter() - middle_s)
        took[0].append(middle_s - began_s)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return 1e3 * median(took[0]), 1e3 * median(took[1])


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
