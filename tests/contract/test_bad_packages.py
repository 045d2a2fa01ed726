"""Ways in which a package can be wrong: refused by the load with a sentence, here and on real Triton, and nothing stays behind."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import SERVERS
from tests.contract.packages import DOUBLE, config, write_model
from tests.contract.servers import ContainerServer, tensor
from tests.contract.triton_server import triton_or_skip

pytestmark = pytest.mark.slow
_numbers = itertools.count()
ONE = [tensor("A", "FP32", [1, 3], [1, 2, 3])]
DOUBLES = 'backend: "python" max_batch_size: 4'


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerServer]:
    """One of this module's own: real Triton says that it is not well after some of what follows."""
    if request.param == "triton":
        triton_or_skip()
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as started:
        yield started


@pytest.fixture
def key() -> str:
    return f"b{next(_numbers):031x}"


def step(model: str, inputs: str, outputs: str) -> str:
    """`inputs` and `outputs` as `MODEL'S=ENSEMBLE'S`, several by commas."""
    maps = [
        f'{kind}_map {{ key: "{name}" value: "{own}" }}'
        for kind, pairs in (("input", inputs), ("output", outputs))
        for name, own in (pair.split("=") for pair in pairs.split(","))
    ]
    return f'step [ {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }} ]'


def ensemble(*steps: str, inputs: str = "A TYPE_FP32 -1", outputs: str = "B TYPE_FP32 -1") -> str:
    return config(
        inputs=inputs, outputs=outputs, more=f'platform: "ensemble" max_batch_size: 4 ensemble_scheduling {{ {" ".join(steps)} }}'
    )


def repository(folder: Path, settings: str) -> Path:
    """Two models that double, and an ensemble that is called `whole`."""
    for name in ("first", "second"):
        write_model(folder, DOUBLE, config(more=DOUBLES), name=name)
    (folder / "whole" / "1").mkdir(parents=True)
    (folder / "whole" / "config.pbtxt").write_text(settings)
    return folder


GOOD = ensemble(step("first", "A=A", "B=middle"), step("second", "A=middle", "B=B"))
WRONG = {
    "a step that is not there": ensemble(step("nobody", "A=A", "B=B")),
    "a circle": ensemble(step("first", "A=there", "B=here"), step("second", "A=here", "B=there")),
    "a tensor that nobody makes": ensemble(step("first", "A=nothing", "B=B")),
    "a tensor that two make": ensemble(step("first", "A=A", "B=B"), step("second", "A=A", "B=B")),
    "an input that the step has not": ensemble(step("first", "X=A", "B=B")),
    "an output that the step has not": ensemble(step("first", "A=A", "X=B")),
    "an input that the step lacks": config(more='platform: "ensemble" max_batch_size: 4 ensemble_scheduling { step [ { '
        'model_name: "first" model_version: -1 output_map { key: "B" value: "B" } } ] }'),
    "another type": ensemble(step("first", "A=A", "B=B"), inputs="A TYPE_INT32 -1"),
    "no steps": config(more='platform: "ensemble" max_batch_size: 4 ensemble_scheduling { }'),
    "rows that a step does not take": ensemble(step("first", "A=A", "B=B")).replace("max_batch_size: 4", "max_batch_size: 64"),
}  # fmt: skip


def test_the_ensemble_that_the_others_are_broken_copies_of_is_served(server: ContainerServer, key: str, tmp_path: Path) -> None:
    answer = server.load(key, repository(tmp_path / key, GOOD))
    assert answer.status == 200, answer.body
    assert server.infer(key, ONE).output("B") == [4, 8, 12]
    assert server.unload(key).status == 200


@pytest.mark.parametrize("case", WRONG)
def test_an_ensemble_that_does_not_fit_together_is_refused_with_a_sentence(
    server: ContainerServer, key: str, tmp_path: Path, case: str
) -> None:
    answer = server.load(key, repository(tmp_path / key, WRONG[case]))
    assert answer.status == 400, answer.body
    assert answer.error
    assert server.call("GET", f"/models/{key}").status == 404
    if server.name == "flatshare":  # Triton says of itself that it is not ready any more
        assert server.call("GET", "/ping").status == 200


def test_a_model_whose_finalize_raises_is_unloaded_all_the_same(server: ContainerServer, key: str, tmp_path: Path) -> None:
    code = DOUBLE + "\n        def finalize(self):\n            raise ValueError('not like this')\n"
    folder = write_model(tmp_path / key, code)
    for _ in range(2):
        assert server.load(key, folder).status == 200
        assert server.infer(key, ONE).output("B") == [2, 4, 6]
        assert server.unload(key).status == 200


@pytest.mark.parametrize("missing", ["the file of the model", "the folder of the version"])
def test_a_package_that_lacks_something_is_refused(server: ContainerServer, key: str, tmp_path: Path, missing: str) -> None:
    if server.name == "triton" and missing == "the file of the model":
        pytest.skip("this Triton never answers the load of a Python model without its file")
    folder = write_model(tmp_path / key)
    (folder / key / "1/model.py").unlink()
    if missing == "the folder of the version":
        (folder / key / "1").rmdir()
    answer = server.load(key, folder)
    assert answer.status == 400, answer.body
    assert server.call("GET", f"/models/{key}").status == 404


def test_a_model_that_prints_megabytes_answers(server: ContainerServer, key: str, tmp_path: Path) -> None:
    head = "        def execute(self, requests):\n"
    code = DOUBLE.replace(head, f"{head}            print('x' * 5_000_000)\n")
    assert server.load(key, write_model(tmp_path / key, code)).status == 200
    assert server.infer(key, ONE).output("B") == [2, 4, 6]
    assert server.unload(key).status == 200
