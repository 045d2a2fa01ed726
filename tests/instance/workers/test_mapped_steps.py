"""Mapped models inside packages: the numbers of the same checkpoint alone, beside Python models, and memory that comes back."""

import asyncio
import gc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flatshare.core.call import InferCall, InferResult
from flatshare.core.clock import ManualClock
from flatshare.core.errors import BadInput, TooLate
from flatshare.core.tensor import Tensor, text_tensor
from flatshare.instance.backends.base import LoadedModel, RemoteModel, StopSign
from flatshare.instance.backends.engines import Engines
from flatshare.instance.backends.mapped import MappedModel
from flatshare.instance.board import Board
from flatshare.instance.books import Books
from flatshare.instance.cache import ModelCache
from flatshare.telemetry.journal import Journal
from tests.calls import text_call
from tests.checkpoints import imported, write_checkpoint
from tests.contract.packages import config, write_model
from tests.instance.conftest import FakeFinder, key_of, source
from tests.instance.workers.conftest import Hotel

ENCODER = 'backend: "mapped" max_batch_size: 8'
PYTHON = 'backend: "python" max_batch_size: 8'
TEXTS = ("the order has not arrived", "help me please!", "unwanted orders", "a b c")
CLEANING = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("clean", self.clean(request))]) for request in requests]

        def clean(self, request):
            texts = pb_utils.get_input_tensor_by_name(request, "raw").as_numpy()
            return np.array([text.decode().removeprefix("query: ").encode() for text in texts.reshape(-1)], object).reshape(texts.shape)
"""
"""Takes a prefix off each text."""
ASKING = """
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(pb_utils.get_input_tensor_by_name(request, "raw")) for request in requests]

        def answer(self, texts):
            asked = pb_utils.Tensor("text", texts.as_numpy())
            reply = pb_utils.InferenceRequest(model_name="encoder", inputs=[asked], requested_output_names=["embedding"]).exec()
            if reply.has_error():
                return pb_utils.InferenceResponse(error=reply.error())
            return pb_utils.InferenceResponse([pb_utils.Tensor("vector", reply.output_tensors()[0].as_numpy() * 2)])
"""
"""Asks the mapped model itself, and doubles its answer."""
STEPS = """
step [
  { model_name: "clean" input_map { key: "raw" value: "raw" } output_map { key: "clean" value: "text" } },
  { model_name: "encoder" input_map { key: "text" value: "text" } output_map { key: "embedding" value: "vector" } }
]
"""


def with_encoder(folder: Path, settings: str = ENCODER, seed: int = 0) -> Path:
    """The repository, with a mapped model `encoder` beside what is in it."""
    write_checkpoint(folder / "encoder" / "1", seed=seed)
    (folder / "encoder" / "config.pbtxt").write_text(settings)
    return folder


def pipeline(folder: Path) -> Path:
    """An ensemble: a Python model, then the encoder."""
    write_model(folder, CLEANING, config(inputs="raw TYPE_STRING 1", outputs="clean TYPE_STRING 1", more=PYTHON), name="clean")
    more = f'platform: "ensemble" max_batch_size: 8 ensemble_scheduling {{ {STEPS} }}'
    (folder / "search").mkdir()
    (folder / "search" / "config.pbtxt").write_text(config(inputs="raw TYPE_STRING 1", outputs="vector TYPE_FP32 32", more=more))
    return with_encoder(folder)


def alone(hotel: Hotel, folder: Path, seed: int = 0) -> LoadedModel:
    """The same checkpoint, served directly."""
    return hotel.mapped.load(imported(hotel.store, write_checkpoint(folder / f"alone{seed}", seed=seed)))


def column(name: str, *texts: str) -> InferCall:
    return InferCall({name: Tensor(name, "BYTES", text_tensor(name, texts).data.reshape(-1, 1))})


async def vectors(model: RemoteModel, call: InferCall, name: str = "embedding") -> NDArray[np.float32]:
    found: NDArray[np.float32] = (await model.infer(call)).output(name).data
    return found


async def test_an_ensemble_of_python_and_a_checkpoint_answers_as_the_checkpoint_alone(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(pipeline(tmp_path / "search"))
    found = await vectors(model, column("raw", *(f"query: {text}" for text in TEXTS)), "vector")
    expected = alone(hotel, tmp_path).run(text_call(*TEXTS)).output("embedding").data
    assert np.array_equal(found, expected)
    assert hotel.workers == 1  # the Python model's


async def test_a_python_model_may_ask_a_mapped_one_of_its_package(hotel: Hotel, tmp_path: Path) -> None:
    settings = config(inputs="raw TYPE_STRING 1", outputs="vector TYPE_FP32 32")
    model = await hotel.load(with_encoder(write_model(tmp_path / "p", ASKING, settings, name="zasking")))
    found = await vectors(model, column("raw", *TEXTS), "vector")
    assert np.array_equal(found, 2 * alone(hotel, tmp_path).run(text_call(*TEXTS)).output("embedding").data)


async def test_a_mapped_model_may_be_the_whole_package_and_takes_no_worker(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(with_encoder(tmp_path / "p"))
    assert (model.signature.platform, [str(info) for info in model.signature.outputs]) == ("flatshare_mapped", ["embedding FP32 [-1, 32]"])
    expected = alone(hotel, tmp_path).run(text_call(*TEXTS)).output("embedding").data
    assert np.array_equal(await vectors(model, column("text", *TEXTS)), expected)
    ids = InferCall({"input_ids": Tensor.of("input_ids", np.array([[2, 5, 6, 3]]))})
    assert np.array_equal(await vectors(model, ids), alone(hotel, tmp_path / "ids").run(ids).output("embedding").data)
    assert hotel.workers == 0
    with pytest.raises(BadInput, match="batch-size must be <= 8"):
        await model.infer(column("text", *TEXTS * 3))
    with pytest.raises(BadInput, match="unexpected shape for input 'text'"):
        await model.infer(text_call(*TEXTS))


async def test_without_a_batch_dimension_it_takes_any_number_of_texts(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(with_encoder(tmp_path / "p", 'backend: "mapped"'))
    expected = alone(hotel, tmp_path).run(text_call(*TEXTS)).output("embedding").data
    assert np.array_equal(await vectors(model, text_call(*TEXTS)), expected)


async def test_versions_answer_by_their_own_weights_and_a_warmup_is_asked(hotel: Hotel, tmp_path: Path) -> None:
    warmup = 'model_warmup [{ name: "w" batch_size: 2 inputs { key: "text" value { data_type: TYPE_STRING dims: [1] zero_data: true } } }]'
    folder = with_encoder(tmp_path / "p", f"{ENCODER} version_policy {{ all {{}} }} {warmup}")
    write_checkpoint(folder / "encoder" / "2", seed=2)
    model = await hotel.load(folder)
    for version, seed in (("1", 0), ("2", 2), ("", 2)):
        call = InferCall(column("text", *TEXTS).inputs, version=version)
        expected = alone(hotel, tmp_path / f"v{version}", seed).run(text_call(*TEXTS)).output("embedding").data
        assert np.array_equal(await vectors(model, call), expected)


async def test_parameters_for_other_steps_do_no_harm_and_prompts_are_heard(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(with_encoder(tmp_path / "p"))
    said = InferCall(column("text", "help").inputs, {"X-Amzn-SageMaker-Custom-Attributes": "a=b", "dimensions": 4, "prompt": "the "})
    assert np.array_equal(await vectors(model, said), await vectors(model, column("text", "the help")))


async def test_calls_that_would_be_too_late_are_not_run(hotel: Hotel, tmp_path: Path) -> None:
    model = await hotel.load(with_encoder(tmp_path / "p"))
    with pytest.raises(TooLate):
        await model.infer(column("text", *TEXTS), deadline_s=asyncio.get_running_loop().time() - 1)


def booked_bytes(books: Books) -> tuple[int, int, int]:
    balance = books.balance()
    return balance.anonymous, balance.mapped, balance.models


@asynccontextmanager
async def cached(hotel: Hotel, board: Board | None = None) -> AsyncIterator[tuple[ModelCache, FakeFinder, Books]]:
    """An instance's cache over both engines; its books know predictions only, as what this process holds is not the models'."""
    finder, books = FakeFinder(), Books(2**40, 0.5, 0)
    engines = Engines({"mapped": hotel.mapped, "triton": hotel.backend})
    with ThreadPoolExecutor(2) as loaders:
        yield ModelCache(engines, finder, books, loaders, ManualClock(), Journal(), patience_s=30, recheck_s=10, board=board), finder, books


async def test_unloading_gives_back_what_it_booked_and_what_it_mapped(hotel: Hotel, tmp_path: Path) -> None:
    async with cached(hotel) as (cache, finder, books):
        empty = booked_bytes(books)
        finder.models["p"] = imported(hotel.store, with_encoder(tmp_path / "p"))
        finder.models["q"] = imported(hotel.store, with_encoder(tmp_path / "q", ENCODER + " # another package\n"))
        finder.models["alone"] = imported(hotel.store, write_checkpoint(tmp_path / "alone"))
        async with cache.lease(key_of("p"), source("p")) as lease:
            assert isinstance(lease.model, RemoteModel)
            await lease.model.infer(column("text", "help"))
        booked = books.balance()
        assert booked.mapped == finder.models["alone"].manifest.mapped_bytes > 0
        assert hotel.mapped.statistics() == {"maps": 1, "sessions": 1, "tokenizers": 1}
        for name in ("q", "alone"):
            async with cache.lease(key_of(name), source(name)):
                pass
        shared = books.balance()
        assert shared.mapped == booked.mapped  # the same tensors
        assert shared.anonymous - booked.anonymous < 0.2 * booked.anonymous  # and the same session and tokenizer
        assert hotel.mapped.statistics() == {"maps": 1, "sessions": 1, "tokenizers": 1}
        for name in ("alone", "p", "q"):
            await cache.unload(key_of(name))
            assert not cache.imbalances()
        del lease
        gc.collect()
        assert booked_bytes(books) == empty
        assert hotel.mapped.statistics() == {"maps": 0, "sessions": 0, "tokenizers": 0}


async def test_a_run_is_on_the_board_so_that_a_dead_instance_tells_whose_it_was(
    hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, run = tmp_path / "i.1.board", list[bytes](), MappedModel.run

    def watched(model: MappedModel, call: InferCall, stop: StopSign | None = None) -> InferResult:
        seen.append(path.read_bytes())
        return run(model, call, stop)

    monkeypatch.setattr(MappedModel, "run", watched)
    board = Board(path)
    async with cached(hotel, board) as (cache, finder, _):
        finder.models["p"] = imported(hotel.store, with_encoder(tmp_path / "p"))
        async with cache.lease(key_of("p"), source("p")) as lease:
            assert isinstance(lease.model, RemoteModel)
            await lease.model.infer(column("text", "help"))
    assert key_of("p").encode() in seen[0]
    assert key_of("p").encode() not in path.read_bytes()
    board.close()
