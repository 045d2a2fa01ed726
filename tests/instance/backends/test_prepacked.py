"""A prepacked copy answers as the mapped weights do, whatever the architecture, and gives its memory back."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flatshare.bench.tenants import base_checkpoint, text_of
from flatshare.core.call import InferCall
from flatshare.core.errors import UnsupportedModel
from flatshare.core.signature import Task
from flatshare.core.tensor import text_tensor
from flatshare.instance.backends import prepacked
from flatshare.instance.backends.mapped import MappedBackend, MappedModel
from flatshare.instance.backends.prepacked import SHORT_TOKENS, Copy
from flatshare.policy.promote import Trial
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import imported
from tests.families import FAMILIES, save_model

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = ("", "order", "where is my order?", "the order has not arrived yet", "the order 🙂 has not")
CLOSE = 1e-5
TASKS = (Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING)
NOT_TAKEN = ("modernbert",)
Outputs = list[NDArray[np.float32]]


@pytest.fixture
def always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a few kilobytes is no faster packed."""
    monkeypatch.setattr(Trial, "pays", property(lambda _: True))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> MappedModel:
    return MappedBackend(concurrent_runs=2).load(imported(TensorStore(tmp_path_factory.mktemp("store")), base_checkpoint()))


def call_of(task: Task, texts: Sequence[str]) -> InferCall:
    if task is Task.RANKING:
        return InferCall({"query": text_tensor("query", ["order"]), "passages": text_tensor("passages", texts)})
    return text_call(*texts)


def numbers(model: MappedModel, task: Task, texts: Sequence[str]) -> Outputs:
    """Of each text alone, since runs of several may be too long for a copy."""
    results = [model.run(call_of(task, [text])) for text in texts]
    return [tensor.data for result in results for tensor in result.outputs if tensor.datatype == "FP32"]


def runs_of_copy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run of any copy had, from now on."""
    seen: list[int] = []
    run = Copy.run

    def counted(self: Copy, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32] | None:
        output = run(self, feeds)
        if output is not None:
            seen.append(feeds["input_ids"].size)
        return output

    monkeypatch.setattr(Copy, "run", counted)
    return seen


@pytest.mark.usefixtures("always_pays")
@pytest.mark.parametrize(
    "task", [Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.RANKING], ids=lambda task: task.value
)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_TAKEN])
def test_a_copy_of_any_family_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, task: Task) -> None:
    labels = {} if task is Task.EMBEDDING else {"num_labels": 1} if task is Task.RANKING else {"id2label": {0: "O", 1: "A", 2: "B"}}
    folder = save_model(tmp_path / "model", family, task, **labels)
    model = MappedBackend(concurrent_runs=1).load(imported(TensorStore(tmp_path / "store"), folder))
    expected = numbers(model, task, SHORT[1:])
    model.make_copy()
    seen = runs_of_copy(monkeypatch)
    for actual, wanted in zip(numbers(model, task, SHORT[1:]), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=CLOSE * max(1.0, float(np.abs(wanted).max())))
    assert len(seen) == len(SHORT) - 1, "all of them were the copy's"


@pytest.mark.parametrize("family", NOT_TAKEN)
def test_what_openvino_does_not_take_is_refused_in_a_sentence_and_served_as_before(tmp_path: Path, family: str) -> None:
    store = TensorStore(tmp_path / "store")
    model = MappedBackend(concurrent_runs=1).load(imported(store, save_model(tmp_path / "model", family, Task.EMBEDDING)))
    with pytest.raises(UnsupportedModel, match=r"^OpenVINO does not take this graph: .*RotaryEmbedding$"):
        model.make_copy()
    assert numbers(model, Task.EMBEDDING, ["order"])


@pytest.fixture
def copied(minilm: MappedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[MappedModel]:
    monkeypatch.setattr(Trial, "pays", property(lambda _: True))  # on a busy machine two runs of one engine differ by a tenth
    minilm.make_copy()
    yield minilm
    minilm.drop_copy()


class TestMiniLM:
    """The real all-MiniLM-L6-v2."""

    def test_it_answers_alike_and_leaves_longer_runs_alone(self, copied: MappedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [text_of(tokens, tokens) for tokens in (3, 30, SHORT_TOKENS, SHORT_TOKENS + 1, 200)]
        seen, before = runs_of_copy(monkeypatch), copied.short_runs
        found = numbers(copied, Task.EMBEDDING, texts)
        assert seen == [3, 30, SHORT_TOKENS]
        assert copied.short_runs - before == 3
        copied.drop_copy()
        for actual, wanted in zip(found, numbers(copied, Task.EMBEDDING, texts), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=CLOSE)

    def test_texts_of_one_length_share_a_run_of_the_copy(self, copied: MappedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [text_of(20, seed) for seed in range(3)]
        alone = numbers(copied, Task.EMBEDDING, texts)
        seen = runs_of_copy(monkeypatch)
        together = copied.run(text_call(*texts)).output("embedding").data
        assert seen == [60]
        np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=CLOSE)

    def test_many_at_once_are_answered_by_the_copy_and_by_the_mapped_weights(self, copied: MappedModel) -> None:
        texts = [text_of(10 + seed % 20, seed) for seed in range(64)]
        alone = numbers(copied, Task.EMBEDDING, texts)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda text: numbers(copied, Task.EMBEDDING, [text])[0], texts))
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(alone), rtol=0, atol=CLOSE)

    def test_who_finds_the_copy_busy_or_closed_is_not_kept_waiting(self, copied: MappedModel) -> None:
        copy, feeds = copied._copy, prepacked.probe(copied._architecture.run_inputs)
        assert copy is not None
        with copy._lock:
            assert copy.run(feeds) is None
        assert copy.run(feeds) is not None
        copied.drop_copy()
        assert copy.run(feeds) is None

    def test_a_copy_that_fails_is_given_up_and_the_mapped_weights_answer(self, copied: MappedModel) -> None:
        wanted, copy = numbers(copied, Task.EMBEDDING, ["order"]), copied._copy
        assert copy is not None
        copy._request = _Failing()
        np.testing.assert_allclose(numbers(copied, Task.EMBEDDING, ["order"]), wanted, rtol=0, atol=CLOSE)
        assert copy._request is None

    def test_a_copy_that_would_answer_otherwise_is_not_used(self, minilm: MappedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        run = Copy.run

        def slightly_off(self: Copy, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32] | None:
            output = run(self, feeds)
            return None if output is None else output + 0.001

        monkeypatch.setattr(Copy, "run", slightly_off)
        with pytest.raises(UnsupportedModel, match="answers otherwise"):
            minilm.make_copy()
        assert minilm._copy is None

    def test_it_takes_no_more_than_it_says_and_gives_it_back(self, tmp_path: Path) -> None:
        """In a process of its own: what others of this one take would count."""
        ran = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path / "store")], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        said, taken, kept = map(int, ran.stdout.split())
        assert said * 0.6 < taken < said
        assert kept < said * 0.1


class _Failing:
    def infer(self, _: object) -> None:
        raise RuntimeError("out of something")


_MEMORY = """
import sys
from flatshare.bench.tenants import base_checkpoint
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.instance.backends import prepacked
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.instance.books import anonymous_bytes
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore
from pathlib import Path
from tests.calls import text_call
from flatshare.bench.tenants import text_of

store, place = TensorStore(Path(sys.argv[1])), base_checkpoint()
report = import_checkpoint(store, place, ArtifactUri(f"file://{place}"), "1", StoreLimits())
backend = MappedBackend(concurrent_runs=1)
model = backend.load(store.stored(report.manifest.digest))

def life():
    trial = model.make_copy()
    if model._copy is None:
        raise SystemExit(f"it did not pay: {trial}")
    for number in range(120):
        model.run(text_call(text_of(3 + number % 60, number)))
    taken = anonymous_bytes()
    model.drop_copy()
    backend.shrink()
    return taken

life()  # the first one also pays for the library
before = anonymous_bytes()
taken = life() - before
print(model.copy_footprint().own_bytes, taken, anonymous_bytes() - before)
"""
