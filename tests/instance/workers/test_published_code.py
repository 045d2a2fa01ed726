"""Only code that an operator has published runs, and every byte of it counts."""

import py_compile
import re
import tarfile
from pathlib import Path

import pytest

from flatshare.core.errors import UnpublishedCode
from flatshare.package.triton.code import python_code
from flatshare.store.published import PublishedFile
from tests.contract.packages import DOUBLE, config, write_model
from tests.fuzz.models import onnx_seeds
from tests.instance.workers.conftest import Hotel, MakeHotel, call, numbers

pytestmark = pytest.mark.slow
RAN = """
    from pathlib import Path
    import triton_python_backend_utils as pb_utils
    Path({path!r}).touch()

    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", request.inputs()[0].as_numpy())]) for request in requests]
"""


@pytest.fixture
def file(tmp_path: Path) -> PublishedFile:
    return PublishedFile(tmp_path / "published-code.json")


@pytest.fixture
async def strict(make_hotel: MakeHotel, file: PublishedFile) -> Hotel:
    return await make_hotel(published_code=file.path)


async def digest_refused(hotel: Hotel, code: str, files: dict[str, str] | None = None) -> str:
    with pytest.raises(UnpublishedCode) as refused:
        await hotel.load_code(code, files=files)
    found = re.search(r"flatshare code publish ([0-9a-f]{64})", str(refused.value))
    assert found is not None
    return found[1]


async def test_code_runs_once_its_digest_is_published_with_whatever_weights(strict: Hotel, file: PublishedFile, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    digest = await digest_refused(strict, RAN.format(path=str(ran)))
    assert not ran.exists(), "not a line of it was executed"
    assert strict.workers == 0
    file.publish(digest, "test", 0.0)
    for _ in range(2):  # each a package of its own, with another number.txt
        model = await strict.load_code(RAN.format(path=str(ran)))
        assert numbers(await model.infer(call(3))) == [3]
    assert ran.exists()


async def test_another_line_in_a_helper_is_other_code(strict: Hotel, file: PublishedFile) -> None:
    file.publish(await digest_refused(strict, DOUBLE, {"helper.py": "X = 1"}), "", 0.0)
    await strict.load_code(DOUBLE, files={"helper.py": "X = 1"})
    await digest_refused(strict, DOUBLE, {"helper.py": "X = 2"})
    await digest_refused(strict, DOUBLE, {"helper.py": "X = 1", "more.py": ""})


async def test_compiled_code_counts_as_code(strict: Hotel, file: PublishedFile, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "compiled")
    inside = folder / folder.name / "1"
    [plain] = python_code(folder)
    (tmp_path / "evil.py").write_text("X = 1")
    py_compile.compile(str(tmp_path / "evil.py"), str(inside / "numpy_of_ours.pyc"), doraise=True)
    [with_compiled] = python_code(folder)
    assert plain.digest != with_compiled.digest
    file.publish(plain.digest, "", 0.0)
    with pytest.raises(UnpublishedCode, match=with_compiled.digest):
        await strict.load(folder)


async def test_what_python_has_cached_is_not_packed_and_does_not_count(strict: Hotel, file: PublishedFile, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cached")
    [code] = python_code(folder)
    cache = folder / folder.name / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"anything")
    assert python_code(folder) == (code,)
    file.publish(code.digest, "", 0.0)
    model = await strict.load(folder)
    assert numbers(await model.infer(call(3))) == [6]


async def test_what_is_revoked_runs_no_more_though_it_is_in_memory(
    strict: Hotel, file: PublishedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatshare.store.published._LOOK_EVERY_S", 0.0)
    digest = await digest_refused(strict, DOUBLE)
    file.publish(digest, "", 0.0)
    model = await strict.load_code(DOUBLE)
    assert numbers(await model.infer(call(1))) == [2]
    file.revoke(digest)
    with pytest.raises(UnpublishedCode, match=digest):
        await model.infer(call(1))


async def test_a_graph_that_brings_an_interpreter_of_its_own_brings_code(strict: Hotel, tmp_path: Path) -> None:
    ran, evil = tmp_path / "ran", tmp_path / "env" / "bin" / "python"
    evil.parent.mkdir(parents=True)
    evil.write_text(f"#!/bin/sh\ntouch {ran}\n")
    evil.chmod(0o755)
    folder = tmp_path / "graph"
    (folder / "graph" / "1").mkdir(parents=True)
    (folder / "graph" / "1" / "model.onnx").write_bytes(onnx_seeds()[0])
    names = {"inputs": "input_ids TYPE_INT64 -1", "outputs": "logits TYPE_FP32 -1 40"}
    where = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }'
    (folder / "graph" / "config.pbtxt").write_text(config(more=f'backend: "onnxruntime" max_batch_size: 4 {where}', **names))
    with tarfile.open(folder / "graph" / "env.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "env", ".")
    [code] = python_code(folder)
    with pytest.raises(UnpublishedCode, match=code.digest):
        await strict.load(folder)
    assert not ran.exists()


async def test_a_step_of_an_ensemble_is_refused_as_well(strict: Hotel, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "step")
    ensemble = folder / "whole"
    (ensemble / "1").mkdir(parents=True)
    (ensemble / "1" / ".keep").touch()
    maps = 'input_map { key: "A" value: "A" } output_map { key: "B" value: "B" }'
    step = f'ensemble_scheduling {{ step [{{ model_name: "step" model_version: -1 {maps} }}] }}'
    (ensemble / "config.pbtxt").write_text(config(more=f'platform: "ensemble" max_batch_size: 4 {step}'))
    with pytest.raises(UnpublishedCode, match="model 'step'"):
        await strict.load(folder)
