"""Triton repositories in the store: whole, shared where they are equal, repaired, and gone when nobody names them."""

import json
from pathlib import Path

import numpy as np
import pytest

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.ids import ArtifactUri
from flatshare.core.repository import Repository, from_json
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import StoredModel
from flatshare.package.importer import import_checkpoint
from flatshare.store.tensors import TensorStore
from tests.checkpoints import safetensors
from tests.contract.packages import DOUBLE, config, write_model

LARGE = (200, 100)


def stored(store: TensorStore, folder: Path) -> StoredModel:
    report = import_checkpoint(store, folder, ArtifactUri(f"file://{folder}"), "1", StoreLimits())
    found = store.stored(report.manifest.digest)
    assert found is not None
    return found


def described(model: StoredModel) -> Repository:
    return from_json(Path(model.graph_path).read_bytes())


def with_weights(folder: Path, own: int, *, frozen: int = 0) -> Path:
    write_model(folder)
    tensors = {name: np.random.default_rng(seed).standard_normal(LARGE, np.float32) for name, seed in (("own", own), ("frozen", frozen))}
    (folder / folder.name / "1" / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def test_a_package_has_its_files_and_describes_its_models(store: TensorStore, tmp_path: Path) -> None:
    model = stored(store, write_model(tmp_path / "m"))
    assert (Path(model.package_dir) / "m" / "1" / "model.py").read_text() == (tmp_path / "m/m/1/model.py").read_text()
    repository = described(model)
    assert (repository.entry, [(unit.model, unit.version) for unit in repository.units]) == ("m", [("m", 1)])
    assert repository.units[0].config["max_batch_size"] == 4


def test_tensors_that_an_earlier_package_has_are_found_in_its_file_and_outlive_it(store: TensorStore, tmp_path: Path) -> None:
    first, second = with_weights(tmp_path / "a", 1), with_weights(tmp_path / "b", 2)
    stored(store, first)
    model = stored(store, second)
    [shared] = described(model).units[0].shared.values()
    assert list(shared) == ["frozen"]
    store.catalog.forget_artifact(ArtifactUri(f"file://{first}"))
    store.collect()
    place = Path(model.package_dir, "b", shared["frozen"].path)
    found = np.frombuffer(place.read_bytes(), np.float32, LARGE[0] * LARGE[1], shared["frozen"].offset)
    assert np.array_equal(found.reshape(LARGE), np.random.default_rng(0).standard_normal(LARGE, np.float32))
    assert model.manifest.mapped_bytes == 3 * found.nbytes  # its own tensor, and the first one's file


def test_what_no_artifact_names_goes_with_its_files(store: TensorStore, tmp_path: Path) -> None:
    folder = with_weights(tmp_path / "a", 1)
    model = stored(store, folder)
    assert store.catalog.disk_bytes() > 160_000
    store.catalog.forget_artifact(ArtifactUri(f"file://{folder}"))
    store.collect()
    assert not Path(model.package_dir).exists()
    assert list(store.packages.files_dir.iterdir()) == []
    assert store.catalog.disk_bytes() == 0


def test_repair_removes_what_a_killed_import_left_and_forgets_what_was_lost(store: TensorStore, tmp_path: Path) -> None:
    model = stored(store, write_model(tmp_path / "m"))
    (store.packages.files_dir / "stray").write_bytes(b"x")
    (store.packages.packages_dir / "stray.tmp").mkdir()
    Path(model.package_dir).rename(tmp_path / "moved")
    report = store.repair()
    assert report.dropped_models == (model.manifest.digest,)
    assert not (store.packages.packages_dir / "stray.tmp").exists()
    assert store.stored(model.manifest.digest) is None


def test_weights_are_no_part_of_the_code_version_and_code_is(store: TensorStore, tmp_path: Path) -> None:
    codes = [described(stored(store, with_weights(tmp_path / f"m{n}", n))).units[0].code for n in range(2)]
    other = described(stored(store, write_model(tmp_path / "other", DOUBLE + "\n    # changed\n"))).units[0].code
    assert codes[0] == codes[1] != other


def test_a_version_policy_decides_what_is_served(store: TensorStore, tmp_path: Path) -> None:
    for name, policy, expected in (
        ("latest", "", [3]),
        ("two", "latest { num_versions: 2 }", [2, 3]),
        ("all", "all {}", [1, 2, 3]),
        ("one", "specific { versions: [1] }", [1]),
    ):
        settings = config(more=f'backend: "python" {f"version_policy {{ {policy} }}" if policy else ""}')
        for version in (1, 2, 3):
            (tmp_path / name / name / str(version)).mkdir(parents=True)
            (tmp_path / name / name / str(version) / "model.py").write_text("")
        (tmp_path / name / name / "config.pbtxt").write_text(settings)
        assert [unit.version for unit in described(stored(store, tmp_path / name)).units] == expected


STEP = 'step [{{ model_name: "{model}" input_map {{ key: "A" value: "{take}" }} output_map {{ key: "B" value: "{make}" }} }}]'


def ensemble(folder: Path, *steps: str, output: str = "B TYPE_FP32 -1") -> Path:
    write_model(folder, settings=config())
    (folder / "all" / "1").mkdir(parents=True)
    more = 'platform: "ensemble" max_batch_size: 4 ensemble_scheduling { ' + " ".join(steps) + " }"
    (folder / "all" / "config.pbtxt").write_text(config(more=more, outputs=output))
    return folder


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([STEP.format(model="nobody", take="A", make="B")], "no such model in the artifact; it holds all, e"),
        ([STEP.format(model="e", take="C", make="B")], "nothing makes the tensor 'C' that its input 'A' takes"),
        ([STEP.format(model="e", take="A", make="C")], "no step makes its output 'B'"),
        ([STEP.format(model="e", take="B", make="C"), STEP.format(model="e", take="C", make="B")], "goes round in a circle: e → e"),
        ([STEP.format(model="e", take="A", make="B"), STEP.format(model="e", take="A", make="B")], "'B' is made by step 0 already"),
        ([STEP.format(model="all", take="A", make="B")], "calls itself: all → all"),
        ([STEP.format(model="e", take="A", make="B").replace('"A" value', '"X" value')], "input_map names X"),
        ([], "has no steps"),
    ],
)
def test_an_ensemble_that_does_not_fit_together_is_refused_with_the_step(
    store: TensorStore, tmp_path: Path, steps: list[str], says: str
) -> None:
    with pytest.raises(BadPackage, match=says):
        stored(store, ensemble(tmp_path / "e", *steps))


def test_types_and_sizes_must_agree_between_steps(store: TensorStore, tmp_path: Path) -> None:
    step = STEP.format(model="e", take="A", make="B")
    with pytest.raises(BadPackage, match="'B' is FP32 where step 0 makes it, and INT64 is taken"):
        stored(store, ensemble(tmp_path / "e", step, output="B TYPE_INT64 -1"))


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ('backend: "tensorrt"', UnsupportedModel, "backend 'tensorrt' is not served"),
        ('backend: "python" platform: "onnxruntime_onnx"', BadPackage, "contradict each other"),
        ('backend: "python" sequence_batching {}', UnsupportedModel, "sequence_batching"),
        ('backend: "python" instance_group [{ kind: KIND_GPU }]', UnsupportedModel, "KIND_GPU"),
        ('backend: "python" name: "other"', BadPackage, "names the model 'other'"),
        ('backend: "python" nonsense: 7', BadPackage, r"line 1.*nonsense"),
        (r'backend: "\python"', BadPackage, r"invalid escape sequence.*written twice"),
        ('backend: "onnxruntime"', BadPackage, "needs the file 1/model.onnx"),
        ('backend: "python" input [{ name: "A" dims: [1] }]', BadPackage, "'A' has no data_type"),
        ('backend: "python" input [{ name: "A" data_type: TYPE_FP32 dims: [0] }]', BadPackage, "dims"),
    ],
)
def test_a_config_that_is_wrong_says_what(store: TensorStore, tmp_path: Path, settings: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        stored(store, write_model(tmp_path / "m", settings=settings))


def test_a_repository_of_one_folder_needs_no_config_if_its_file_says_what_it_is(store: TensorStore, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "m" / "config.pbtxt").unlink()
    assert described(stored(store, folder)).units[0].config["backend"] == "python"


def test_a_description_survives_json(store: TensorStore, tmp_path: Path) -> None:
    repository = described(stored(store, with_weights(tmp_path / "a", 1)))
    assert json.loads(json.dumps(repository.units[0].config)) == repository.units[0].config
