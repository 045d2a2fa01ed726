"""Checkpoints inside Triton repositories: their tensors in the store, their configs checked and completed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flatshare.core import interface
from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.ids import ArtifactUri
from flatshare.core.repository import Unit, from_json
from flatshare.core.settings import StoreLimits
from flatshare.core.spec import StoredModel
from flatshare.package.importer import import_checkpoint
from flatshare.package.triton.mapped import completed, read_version
from flatshare.store.tensors import TensorStore
from flatshare.wire import triton_config
from tests.checkpoints import CONFIG, import_folder, imported, write_checkpoint
from tests.contract.packages import config, write_model

MAPPED = 'backend: "mapped" max_batch_size: 8'


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def package(folder: Path, settings: str = MAPPED, *, seed: int = 0, version: int = 1) -> Path:
    """A mapped model in a repository of its own."""
    model = folder / folder.name
    write_checkpoint(model / str(version), seed=seed)
    (model / "config.pbtxt").write_text(settings)
    return folder


def unit_of(model: StoredModel, version: int = 1) -> Unit:
    return next(unit for unit in from_json(Path(model.graph_path).read_bytes()).units if unit.version == version)


def forget(store: TensorStore, folder: Path) -> None:
    store.catalog.forget_artifact(ArtifactUri(f"file://{folder}"))
    store.collect()


def test_a_checkpoint_in_a_package_is_the_model_that_it_is_alone(store: TensorStore, tmp_path: Path) -> None:
    alone = import_folder(store, write_checkpoint(tmp_path / "alone"))
    model = imported(store, package(tmp_path / "m"))
    assert unit_of(model).encoder == alone.manifest
    assert model.manifest.distinct_tensors == alone.manifest.distinct_tensors
    files = {str(path.relative_to(model.package_dir)) for path in Path(model.package_dir).rglob("*") if path.is_file()}
    assert files == {"m/config.pbtxt", "m/1/graph.onnx", "m/1/tokenizer.json"}


def test_packages_with_one_checkpoint_have_its_tensors_once_on_the_disk(store: TensorStore, tmp_path: Path) -> None:
    first = import_folder(store, package(tmp_path / "a"))
    before = store.usage()
    second = import_folder(store, package(tmp_path / "b", MAPPED + " # another package\n"))
    after = store.usage()
    assert second.manifest.digest != first.manifest.digest
    assert (after.models, after.distinct_bytes, after.pack_bytes) == (2, before.distinct_bytes, before.pack_bytes)
    assert after.sum_bytes == 2 * before.sum_bytes
    own = (tmp_path / "b/b/config.pbtxt").stat().st_size + store.blob_path(second.manifest.graph).stat().st_size
    assert second.new_bytes == own  # its config and its description: graph and tokenizer are the first one's files


def test_tensors_stay_while_a_package_has_them_and_go_with_the_last(store: TensorStore, tmp_path: Path) -> None:
    first, second = package(tmp_path / "a"), package(tmp_path / "b", MAPPED + " # another package\n")
    imported(store, first)
    model = imported(store, second)
    forget(store, first)
    found = store.stored(model.manifest.digest)
    assert found is not None
    assert len(found.places) == len(model.manifest.distinct_tensors) > 0
    assert all(sound for _, sound in store.verify())
    assert (Path(found.package_dir) / "b/1/graph.onnx").is_file()
    forget(store, second)
    assert store.catalog.disk_bytes() == 0
    assert not list(store.packs_dir.iterdir())


def test_a_package_that_lost_a_pack_is_imported_anew_and_one_with_its_tensors_survives_a_restart(
    store: TensorStore, tmp_path: Path
) -> None:
    model = imported(store, package(tmp_path / "m"))
    again = TensorStore(store.folder)
    assert again.repair().dropped_models == ()
    assert again.stored(model.manifest.digest) == model
    [pack] = store.packs_dir.iterdir()
    pack.unlink()
    assert again.repair().dropped_models == (model.manifest.digest,)
    assert imported(again, tmp_path / "m") == model


def test_the_package_is_another_if_only_its_weights_are(store: TensorStore, tmp_path: Path) -> None:
    first = import_folder(store, package(tmp_path / "x" / "m")).manifest
    second = import_folder(store, package(tmp_path / "y" / "m", seed=1)).manifest
    assert [file.digest for file in first.files] == [file.digest for file in second.files]
    assert first.digest != second.digest


def test_what_the_config_leaves_out_is_completed_from_the_checkpoint(store: TensorStore, tmp_path: Path) -> None:
    rows = unit_of(imported(store, package(tmp_path / "rows"))).config
    assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in rows["input"]] == [
        ("text", "TYPE_STRING", [1]),
        ("input_ids", "TYPE_INT64", [-1]),
        ("attention_mask", "TYPE_INT64", [-1]),
        ("token_type_ids", "TYPE_INT64", [-1]),
    ]
    assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in rows["output"]] == [("embedding", "TYPE_FP32", [32])]
    whole = unit_of(imported(store, package(tmp_path / "whole", 'backend: "mapped"'))).config
    assert [tensor["dims"] for tensor in whole["input"]] == [[-1], [-1, -1], [-1, -1], [-1, -1]]
    assert [tensor["dims"] for tensor in whole["output"]] == [[-1, 32]]
    stated = unit_of(imported(store, package(tmp_path / "stated", config(inputs="text TYPE_STRING 1", outputs="", more=MAPPED)))).config
    assert [tensor["name"] for tensor in stated["input"]] == ["text"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "more"),
    [
        ("text TYPE_STRING 1", "embedding TYPE_FP32 32", MAPPED),
        ("text TYPE_STRING -1", "embedding TYPE_FP32 -1", MAPPED),
        ("text TYPE_STRING -1", "", MAPPED),
        ("text TYPE_STRING 1", "", 'backend: "mapped"'),
        ("input_ids TYPE_INT64 -1,attention_mask TYPE_INT64 -1", "embedding TYPE_FP32 32", MAPPED),
    ],
)
def test_a_config_that_agrees_is_accepted(store: TensorStore, tmp_path: Path, inputs: str, outputs: str, more: str) -> None:
    imported(store, package(tmp_path / "m", config(inputs=inputs, outputs=outputs, more=more)))


@pytest.mark.parametrize(
    ("inputs", "outputs", "more", "says"),
    [
        ("words TYPE_STRING 1", "", MAPPED, "model 'm', version 1: the config names the input 'words', the checkpoint has text, input_ids"),
        ("", "vector TYPE_FP32 32", MAPPED, "the config names the output 'vector', the checkpoint has embedding"),
        ("text TYPE_INT64 1", "", MAPPED, "input 'text' is INT64 in the config, BYTES in the checkpoint"),
        ("", "embedding TYPE_FP16 32", MAPPED, "output 'embedding' is FP16 in the config, FP32 in the checkpoint"),
        ("", "embedding TYPE_FP32 16", MAPPED, r"'embedding' has shape \[-1, 16\] in the config, \[-1, 32\] in the checkpoint"),
        ("", "embedding TYPE_FP32 32", 'backend: "mapped"', r"has shape \[32\] in the config, \[-1, 32\] in the checkpoint"),
        ("text TYPE_STRING 2", "", MAPPED, r"input 'text' has shape \[-1, 2\] in the config"),
        ("attention_mask TYPE_INT64 -1", "", MAPPED, "with attention_mask alone nothing can be asked"),
        ("", "", MAPPED + " model_transaction_policy { decoupled: true }", "cannot be decoupled"),
        ("", "", MAPPED + ' default_model_filename: "x"', "leave default_model_filename out"),
    ],
)
def test_a_config_that_contradicts_its_checkpoint_is_refused_with_both(
    store: TensorStore, tmp_path: Path, inputs: str, outputs: str, more: str, says: str
) -> None:
    with pytest.raises(BadPackage, match=says):
        imported(store, package(tmp_path / "m", config(inputs=inputs, outputs=outputs, more=more)))
    assert store.catalog.disk_bytes() == 0


def test_a_parameter_of_workers_is_refused(store: TensorStore, tmp_path: Path) -> None:
    alone = ' parameters { key: "FLATSHARE_OWN_WORKER" value { string_value: "true" } }'
    with pytest.raises(UnsupportedModel, match="FLATSHARE_OWN_WORKER is for models in workers"):
        imported(store, package(tmp_path / "m", MAPPED + alone))


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("llama", UnsupportedModel, "models that write are not served inside a repository"),
        ("resnet", UnsupportedModel, "model 'm', version 1: .*resnet"),
        (None, BadPackage, "config.json is missing"),
    ],
)
def test_what_is_no_encoder_is_refused_in_a_sentence(
    store: TensorStore, tmp_path: Path, kind: str | None, error: type[Exception], says: str
) -> None:
    folder = package(tmp_path / "m")
    shutil.rmtree(folder / "m/1")
    if kind is not None:
        write_checkpoint(folder / "m/1", config={**CONFIG, "model_type": kind}, tensors={})
    else:
        (folder / "m/1").mkdir()
    with pytest.raises(error, match=says):
        imported(store, folder)


def test_an_ensemble_is_checked_against_what_a_checkpoint_gives(store: TensorStore, tmp_path: Path) -> None:
    folder = package(tmp_path / "m")
    (folder / "all").mkdir()
    step = 'step [{ model_name: "m" input_map { key: "text" value: "T" } output_map { key: "embedding" value: "V" } }]'
    more = f'platform: "ensemble" max_batch_size: 8 ensemble_scheduling {{ {step} }}'
    (folder / "all/config.pbtxt").write_text(config(inputs="T TYPE_STRING 1", outputs="V TYPE_FP32 16", more=more))
    with pytest.raises(BadPackage, match=r"'V' has dims \[32\] where step 0 makes it, and \[16\] are taken"):
        imported(store, folder)


def test_versions_are_models_of_their_own_and_those_that_are_not_served_stay_out(store: TensorStore, tmp_path: Path) -> None:
    folder = package(tmp_path / "m", MAPPED + " version_policy { latest { num_versions: 2 } }")
    for version in (2, 3):
        write_checkpoint(folder / "m" / str(version), seed=version)
    model = imported(store, folder)
    digests = {unit.version: unit.encoder.digest for unit in from_json(Path(model.graph_path).read_bytes()).units if unit.encoder}
    assert set(digests) == {2, 3}
    assert digests[2] != digests[3]
    assert not (Path(model.package_dir) / "m/1").exists()


def test_packages_without_checkpoints_keep_their_digests(store: TensorStore, tmp_path: Path) -> None:
    """Computed before there were mapped models: an upgrade must not import everything anew."""
    report = import_checkpoint(store, write_model(tmp_path / "m"), ArtifactUri("file:///m"), "1", StoreLimits())
    assert report.manifest.digest == "7b48f953c8b5505f5d62b6d78401b4376146ebae2939a8b6476aab2de53a7fbd"


def test_rankers_and_token_classifiers_have_no_batch_dimension_and_take_all_else_from_their_signature(tmp_path: Path) -> None:
    folder = package(tmp_path / "m") / "m"
    settings = triton_config.parse('backend: "mapped"', "m")
    encoder = read_version(folder, triton_config.read(settings, "m"), 1, StoreLimits())
    for signature in (interface.ranking(), interface.token_classification(3)):
        versions = {1: replace(encoder, signature=signature)}
        found = triton_config.read(completed(settings, triton_config.read(settings, "m"), versions), "m")
        assert found.tensor_infos(found.inputs) == signature.inputs
        assert found.tensor_infos(found.outputs) == signature.outputs
        batched = triton_config.read({**settings, "max_batch_size": 4}, "m")
        with pytest.raises(BadPackage, match="does not answer one row for each of its inputs: leave max_batch_size out"):
            completed(settings, batched, versions)
    versions = {1: replace(encoder, signature=interface.classification(3))}
    batched = triton_config.read({**settings, "max_batch_size": 4}, "m")
    found = triton_config.read(completed(settings, batched, versions), "m")
    assert [(tensor.name, tensor.dims) for tensor in found.outputs] == [("label", (3,)), ("score", (3,)), ("logits", (3,))]
