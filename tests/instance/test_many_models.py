"""1,500 models in memory at once: no limit of the kernel is near, and each answers as itself."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from flatshare.bench.reference import ReferenceEncoder
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported, write_checkpoint

MODELS = 1_500
TEXT = "the order has not arrived yet"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("many")
    return [write_checkpoint(base / f"{seed:04d}", seed=seed) for seed in range(MODELS)]


@pytest.fixture(scope="module")
def models(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[MappedModel]:
    store = TensorStore(tmp_path_factory.mktemp("many-store"))
    with pytest.MonkeyPatch.context() as patch:  # durability is not what is tested here, and takes a third of the time
        patch.setattr(os, "fsync", lambda _: None)
        stored = [imported(store, folder) for folder in folders]
    assert len({model.manifest.digest for model in stored}) == MODELS
    backend = MappedBackend(concurrent_runs=2)
    backend.load(stored[0]).run(text_call(TEXT))
    gc.collect()
    before = kernel_counts()
    loaded = [backend.load(model) for model in stored]
    for model in loaded:
        model.run(text_call(TEXT))
    after = kernel_counts()
    assert backend.statistics() == {"maps": MODELS, "sessions": 1, "tokenizers": 1}
    assert after["maps"] - before["maps"] <= MODELS + 200  # the heap grows by a few maps
    assert after["maps"] < int(Path("/proc/sys/vm/max_map_count").read_text()) / 8
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] == before["threads"]
    return loaded


def kernel_counts() -> dict[str, int]:
    return {
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


@pytest.mark.slow
def test_each_of_many_resident_models_answers_as_itself(models: list[MappedModel], folders: list[Path]) -> None:
    vectors = np.concatenate([model.run(text_call(TEXT)).output("embedding").data for model in models])
    assert len({vector.tobytes() for vector in vectors}) == MODELS
    for index in range(0, MODELS, 100):
        np.testing.assert_allclose(vectors[index], ReferenceEncoder(folders[index]).embed(TEXT), atol=1e-5)


@pytest.mark.slow
def test_many_models_may_run_from_several_threads(models: list[MappedModel]) -> None:
    alone = [model.run(text_call(TEXT)).output("embedding").data for model in models[:200]]
    wrong = list[int]()

    def check(start: int) -> None:
        for index in range(start, 200):
            if not np.allclose(models[index].run(text_call(TEXT, "order")).output("embedding").data[0], alone[index][0], atol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=check, args=(start,)) for start in (0, 20, 40, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
