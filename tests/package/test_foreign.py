"""Architectures without a generated graph: exported by torch, or found as an ONNX file; mapped and equal to the original."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from transformers import AlbertForSequenceClassification, AutoTokenizer

from flatshare.core.errors import BadPackage, UnsupportedModel
from flatshare.core.settings import StoreLimits
from flatshare.core.signature import Task
from flatshare.core.spec import ModelManifest
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.package import foreign, onnx_files
from flatshare.package.onnx_files import read_onnx
from flatshare.store.tensors import TensorStore
from tests.calls import text_call
from tests.checkpoints import import_folder
from tests.families import LONG, TEXTS, save_model, write_sentence_modules
from tests.package.conftest import Exported

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "store")


def answers(store: TensorStore, manifest: ModelManifest, output: str, *texts: str) -> NDArray[np.float32]:
    stored = store.stored(manifest.digest)
    assert stored is not None
    found: NDArray[np.float32] = MappedBackend(concurrent_runs=1).load(stored).run(text_call(*texts)).output(output).data
    return found


def expected_logits(folder: Path, *texts: str) -> NDArray[np.float32]:
    model, tokenizer = AlbertForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    with torch.no_grad():
        return np.concatenate([model(**features).logits.numpy() for features in inputs])


def test_the_export_is_compared_with_the_model(albert: Exported) -> None:
    difference = albert.report["difference"]
    assert isinstance(difference, float)
    assert difference < 1e-5


def test_an_exported_model_answers_as_transformers_does(store: TensorStore, albert: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_run_export", _done_before(albert, albert.report))
    report = import_folder(store, albert.checkpoint)
    assert report.manifest.notes[0].startswith("exported from torch, which it differs from by ")
    assert (report.manifest.family, report.manifest.max_tokens, report.manifest.width) == ("albert", 48, 3)
    texts = ("", *TEXTS)
    found = answers(store, report.manifest, "logits", *texts)
    np.testing.assert_allclose(found, expected_logits(albert.checkpoint, *texts), rtol=0, atol=1e-5)


def _done_before(albert: Exported, report: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """In place of a second export of the same."""

    def export(out: Path, checkpoint: Path, head: str) -> dict[str, Any]:
        assert (checkpoint, head) == (albert.checkpoint, "AutoModelForSequenceClassification")
        shutil.copyfile(albert.graph, out / "model.onnx")
        return report

    return export


def test_an_export_that_differs_is_refused_with_the_difference(
    store: TensorStore, albert: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_run_export", _done_before(albert, {"difference": 0.25}))
    with pytest.raises(UnsupportedModel, match=r"model_type is 'albert'.*differs from the model by 2.5e-01"):
        import_folder(store, albert.checkpoint)


def test_an_export_that_fails_says_why(store: TensorStore, albert: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(albert.checkpoint, folder)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(UnsupportedModel, match=r"model_type is 'unheard-of'.*Its export to ONNX failed: ValueError"):
        import_folder(store, folder)


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnxscript"])
def test_without_the_extra_the_error_says_what_to_install(
    store: TensorStore, albert: Exported, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(foreign, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UnsupportedModel, match=r"model_type is 'albert'.*pip install 'flatshare\[torch\]'"):
        import_folder(store, albert.checkpoint)


class TestOnnxFiles:
    def test_a_file_in_the_checkpoint_is_served_and_its_weights_are_in_the_store(
        self, store: TensorStore, albert: Exported, with_onnx: Path
    ) -> None:
        report = import_folder(store, with_onnx)
        assert report.manifest.notes == ("the graph is the checkpoint's onnx/model.onnx",)
        assert report.new_bytes == report.manifest.mapped_bytes > 35_000
        assert store.blob_path(report.manifest.graph).stat().st_size < 40_000
        found = answers(store, report.manifest, "logits", *TEXTS)
        np.testing.assert_allclose(found, expected_logits(albert.checkpoint, *TEXTS), rtol=0, atol=1e-5)

    def test_long_texts_are_cut_where_the_tokenizer_says(self, store: TensorStore, with_onnx: Path) -> None:
        stored = store.stored(import_folder(store, with_onnx).manifest.digest)
        assert stored is not None
        result = MappedBackend(concurrent_runs=1).load(stored).run(text_call(LONG, "order"))
        assert result.parameters["truncated"] == (0,)

    def test_another_model_of_the_architecture_shares_its_graph(self, store: TensorStore, with_onnx: Path, tmp_path: Path) -> None:
        first = import_folder(store, with_onnx)
        other = tmp_path / "other"
        shutil.copytree(with_onnx, other)
        model = onnx.load(other / "onnx/model.onnx")
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1024:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
        onnx.save(model, other / "onnx/model.onnx")
        second = import_folder(store, other)
        assert second.manifest.graph == first.manifest.graph
        assert second.manifest.digest != first.manifest.digest

    def test_a_graph_of_token_vectors_gets_the_pooling_that_the_modules_ask_for(self, store: TensorStore, tmp_path: Path) -> None:
        hidden = 32
        folder = save_model(tmp_path / "model", "bert", Task.EMBEDDING)
        write_sentence_modules(folder, ("Pooling", {"pooling_mode": ["mean", "max", "lasttoken"]}), ("Normalize", {}))
        generated = answers(store, import_folder(store, folder).manifest, "embedding", *TEXTS)
        onnx.save(_token_vectors(folder, hidden), folder / "model.onnx")
        (folder / "model.safetensors").unlink()
        report = import_folder(store, folder, version="2")
        assert report.manifest.notes == ("the graph is the checkpoint's model.onnx",)
        np.testing.assert_allclose(answers(store, report.manifest, "embedding", *TEXTS), generated, rtol=0, atol=1e-5)

    def test_a_prompt_that_is_not_pooled_is_left_out_behind_such_a_graph_too(self, store: TensorStore, tmp_path: Path) -> None:
        folder = save_model(tmp_path / "model", "bert", Task.EMBEDDING)
        pooling = {"pooling_mode": ["mean", "cls", "weightedmean"], "include_prompt": False}
        write_sentence_modules(folder, ("Pooling", pooling), prompts={"query": "help me "}, default_prompt_name="query")
        generated = answers(store, import_folder(store, folder).manifest, "embedding", *TEXTS)
        onnx.save(_token_vectors(folder, 32), folder / "model.onnx")
        (folder / "model.safetensors").unlink()
        manifest = import_folder(store, folder, version="2").manifest
        assert manifest.notes == ("the graph is the checkpoint's model.onnx",)
        np.testing.assert_allclose(answers(store, manifest, "embedding", *TEXTS), generated, rtol=0, atol=1e-5)

    def test_a_graph_that_has_pooled_the_prompt_already_is_refused(self, store: TensorStore, tmp_path: Path) -> None:
        folder = save_model(tmp_path / "model", "bert", Task.EMBEDDING)
        write_sentence_modules(folder, ("Pooling", {"pooling_mode": "mean", "include_prompt": False}))
        model = _token_vectors(folder, 32)
        model.graph.node[-1].output[0] = model.graph.output[0].name = "sentence_embedding"
        onnx.save(model, folder / "model.onnx")
        (folder / "model.safetensors").unlink()
        with pytest.raises(UnsupportedModel, match="gives sentence_embedding: a model for embedding needs last_hidden_state"):
            import_folder(store, folder)


def _token_vectors(folder: Path, hidden: int) -> onnx.ModelProto:
    """The checkpoint's own generated graph without its pooling, its weights put in: an ONNX file as anybody might write it."""
    from flatshare.package.config import Config
    from flatshare.package.graphs import blocks
    from flatshare.package.graphs.builder import GraphBuilder
    from flatshare.package.graphs.families import read_trunk
    from flatshare.package.weights import WeightsFile

    trunk = read_trunk(Config(orjson.loads((folder / "config.json").read_bytes())))
    g = GraphBuilder()
    blocks.frame(g, hidden)
    last = g.node("Reshape", [trunk.encode(g, None), "full"], "last_hidden_state")
    model = onnx.load_from_string(g.finish("bert", ["input_ids"], last, ["texts", "tokens", hidden]).model)
    file = WeightsFile(folder / "model.safetensors")
    for name in g.weights:
        model.graph.initializer.append(numpy_helper.from_array(file.float32(file.entries[name]).copy(), name))
    inputs = [value for value in model.graph.input if value.name == "input_ids"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def graph(*nodes: onnx.NodeProto, inputs: tuple[str, ...] = ("input_ids",), kind: int = TensorProto.INT64) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, kind, ["texts", "tokens"]) for name in inputs]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", "tokens"])
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(helper.make_graph(nodes, "g", values, [output]), opset_imports=opsets, ir_version=9)


FROM_MASK = helper.make_node("Cast", ["attention_mask"], ["logits"], to=TensorProto.FLOAT)
CAST = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = graph(
        helper.make_node("Cast", ["input_ids"], ["start"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["n", "", "start"], ["logits"], body=body),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "n"))
    return model


def _external(location: str) -> onnx.ModelProto:
    model = graph(CAST)
    tensor = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)
    return model


HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto], type[BadPackage], str]] = {
    "a loop without an end": (_loop, UnsupportedModel, "has a Loop"),
    "an operator of somebody's own": (
        lambda: graph(helper.make_node("Cast", ["input_ids"], ["logits"], domain="evil.example")),
        BadPackage,
        "evil.example",
    ),
    "data outside of the folder": (lambda: _external("../../etc/passwd"), BadPackage, "which is no file beside it"),
    "data at an absolute path": (lambda: _external("/etc/passwd"), BadPackage, "which is no file beside it"),
    "data that is not there": (lambda: _external("weights.bin"), BadPackage, "which is no file beside it"),
    "an input of another name": (lambda: graph(CAST, inputs=("input_ids", "pixels")), UnsupportedModel, "asks for the input 'pixels'"),
    "an input of another type": (lambda: graph(CAST, kind=TensorProto.INT32), UnsupportedModel, "asks for the input 'input_ids'"),
    "no token ids": (lambda: graph(FROM_MASK, inputs=("attention_mask",)), UnsupportedModel, "has no input"),
    "nodes that do not fit": (lambda: graph(helper.make_node("Cast", ["nothing"], ["logits"], to=1)), BadPackage, "no valid ONNX model"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_graph_that_may_not_be_run_is_refused(tmp_path: Path, case: str) -> None:
    make, error, sentence = HOSTILE[case]
    (tmp_path / "model.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(error, match=sentence):
        read_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\x08", b"{}", b"PK\x03\x04", bytes(1000)])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BadPackage, match=r"model.onnx"):
        read_onnx(tmp_path / "model.onnx")


def test_a_fused_graph_that_differs_is_refused(store: TensorStore, with_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        output = other.graph.output[0].name
        node = next(node for node in other.graph.node if output in node.output)
        node.output[list(node.output).index(output)] = "before"
        other.graph.node.append(helper.make_node("Neg", ["before"], [output]))
        return other

    monkeypatch.setattr(onnx_files, "fused", wrong)
    with pytest.raises(UnsupportedModel, match="fused graph differs from the original"):
        import_folder(store, with_onnx)


def test_a_file_beyond_what_protobuf_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "_MOST_BYTES", 10)
    (tmp_path / "model.onnx").write_bytes(graph(CAST).SerializeToString())
    with pytest.raises(UnsupportedModel, match="at most 10 are accepted"):
        read_onnx(tmp_path / "model.onnx")


def test_limits_hold_for_foreign_checkpoints_too(albert: Exported) -> None:
    with pytest.raises(BadPackage, match="more than 10 bytes"):
        foreign.read_foreign(albert.checkpoint, StoreLimits(max_json_bytes=10), None)
