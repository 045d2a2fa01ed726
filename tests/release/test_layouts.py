"""The shipped layouts for models with a signature of their own: tried in a real instance, which runs their code."""

from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from flatshare.core.errors import BadPackage
from flatshare.release.deploying import Wish, deploy
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.release.site import Site
from flatshare.store.code import CodeShelf
from tests.contract.packages import DOUBLE, config, write_model

pytestmark = pytest.mark.slow


def _doubles(server: RunningServer, model: str) -> None:
    with Models("acme", url=server.url) as models:
        found = models.infer(model, {"A": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(found["B"], np.full((1, 3), 2, np.float32))


def test_a_triton_model_is_packaged_deployed_and_called(server: RunningServer, site: Site, tmp_path: Path) -> None:
    source = write_model(tmp_path / "double")
    made = make_package(PackageRequest("acme/double", "triton", {"": source}, {}, None, "", "tar.gz", tmp_path / "made.package"))
    assert made.record.samples[""]["inputs"]
    deploy(site, made, Wish())
    _doubles(server, "double")


def test_weights_and_versioned_code_make_a_python_model(server: RunningServer, site: Site, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/model.py").write_text(dedent(DOUBLE))
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.pbtxt").write_text(config())
    CodeShelf(f"file://{tmp_path}/store").push("double", tmp_path / "code")
    request = PackageRequest(
        "acme/coded", "python", {"": tmp_path / "source"}, {}, "double", f"file://{tmp_path}/store", out=tmp_path / "made"
    )
    made = make_package(request)
    assert made.record.code is not None
    assert (made.record.code.name, made.record.code.version) == ("double", "1")
    deploy(site, made, Wish())
    _doubles(server, "coded")


def test_code_that_raises_is_not_published(tmp_path: Path) -> None:
    source = write_model(tmp_path / "broken", DOUBLE.replace("values * 2", "values * undefined"))
    with pytest.raises(BadPackage, match=r"does not answer its sample.*undefined"):
        make_package(PackageRequest("acme/broken", "triton", {"": source}, {}, None, "", out=tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_a_plain_onnx_file_is_packaged(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "AB"]
    graph = helper.make_graph([helper.make_node("Add", ["A", "A"], ["B"])], "double", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "source").mkdir()
    onnx.save(model, tmp_path / "source/double.onnx")
    made = make_package(PackageRequest("acme/onnx", "onnx", {"": tmp_path / "source"}, {}, None, "", out=tmp_path / "made"))
    assert len(made.record.answered_as[""]) == 64
