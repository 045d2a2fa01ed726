"""The Open Inference Protocol asks who calls, as every road does; and over gRPC it is as private as over HTTP."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import trustme
from tritonclient.utils import InferenceServerException

from flatshare.bench.server import RunningServer
from flatshare.core.access import AccessKey, Grant
from flatshare.security.keys import KeyFile
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import deploy, serving, until
from tests.e2e.test_open_inference import is_ready, text_input

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class House:
    """Two endpoints, and a tenant of one of them beside an operator."""

    server: RunningServer
    tenant_key: AccessKey
    operator_key: AccessKey
    data: Path

    @property
    def tenant(self) -> dict[str, str]:
        return _bearing(self.tenant_key)

    @property
    def operator(self) -> dict[str, str]:
        return _bearing(self.operator_key)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("access")
    for seed, target in enumerate(("a/acme/query", "a/other/query", "b/acme/query", "b/secret")):
        write_checkpoint(folder / target, seed)
    with serving(folder / "data") as server:
        for name in ("a", "b"):
            deploy(server, name, folder / name)
    keys = KeyFile(folder / "data/keys.json")
    tenant = keys.create("acme", (Grant(("sagemaker:InvokeEndpoint",), ("a",), ("acme/*",)),), 0)
    operator = keys.create("operator", (Grant(("*",)),), 0)
    with serving(folder / "data", options=("--auth", "bearer")) as server:
        until(lambda: is_ready(server))
        yield House(server, tenant, operator, folder / "data")


def _bearing(key: AccessKey) -> dict[str, str]:
    """A new one for each call: the client adds headers to what it is given."""
    return {"authorization": f"Bearer {key.principal.key_id}.{key.secret}"}


@pytest.fixture(params=["http", "grpc"])
def road(request: pytest.FixtureRequest, house: House) -> Iterator[tuple[Any, Any]]:
    """A client and its module."""
    if request.param == "http":
        with triton_http.InferenceServerClient(house.server.url.removeprefix("http://")) as client:
            yield client, triton_http
    else:
        with triton_grpc.InferenceServerClient(house.server.grpc_address) as client:
            yield client, triton_grpc


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(InferenceServerException) as failure:
        call()
    return str(failure.value.status()).removeprefix("StatusCode.")


def test_health_is_open_and_nothing_else_is(road: tuple[Any, Any]) -> None:
    client, module = road
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()
    tensors = text_input(module, TEXT)
    for call in (
        lambda: client.infer("a/acme/query", tensors),
        lambda: client.infer("acme/query", tensors),
        lambda: client.get_model_metadata("a/acme/query"),
        client.get_inference_statistics,
        client.get_model_repository_index,
        client.get_log_settings,
        lambda: client.unload_model("a/acme/query"),
        lambda: client.infer("a/acme/query", tensors, headers={"authorization": "Bearer AKIA.nonsense"}),
    ):
        assert _refused(call) in {"401", "UNAUTHENTICATED"}


def test_a_tenant_reaches_its_own_models_and_no_others(house: House, road: tuple[Any, Any]) -> None:
    client, module = road
    tensors = text_input(module, TEXT)
    assert client.infer("a/acme/query", tensors, headers=house.tenant).as_numpy("embedding").shape == (1, 32)
    assert client.get_model_metadata("a/acme/query", headers=house.tenant)
    for call in (
        lambda: client.infer("a/other/query", tensors, headers=house.tenant),
        lambda: client.infer("b/acme/query", tensors, headers=house.tenant),
        lambda: client.get_model_config("b/secret", headers=house.tenant),
        lambda: client.unload_model("a/acme/query", headers=house.tenant),
        lambda: client.load_model("a/acme/query", headers=house.tenant),
        lambda: client.get_model_repository_index(headers=house.tenant),
        lambda: client.get_inference_statistics(headers=house.tenant),
    ):
        assert _refused(call) in {"403", "PERMISSION_DENIED"}


def test_a_bare_name_is_looked_for_only_where_the_caller_may_go(house: House, road: tuple[Any, Any]) -> None:
    client, module = road
    tensors = text_input(module, TEXT)
    mine = client.infer("acme/query", tensors, headers=house.tenant).as_numpy("embedding")
    np.testing.assert_array_equal(mine, client.infer("a/acme/query", tensors, headers=house.tenant).as_numpy("embedding"))
    with pytest.raises(InferenceServerException) as failure:
        client.infer("secret", tensors, headers=house.tenant)
    assert "endpoint/b" not in str(failure.value)
    assert "b/secret" not in str(failure.value)
    assert client.infer("secret", tensors, headers=house.operator).as_numpy("embedding").shape == (1, 32)
    assert _refused(lambda: client.infer("acme/query", tensors, headers=house.operator)) in {"400", "INVALID_ARGUMENT"}


def test_who_is_turned_away_is_written_down(house: House) -> None:
    with triton_grpc.InferenceServerClient(house.server.grpc_address) as client:
        _refused(lambda: client.infer("b/secret", text_input(triton_grpc, TEXT), headers=house.tenant))
    lines = [orjson.loads(line) for path in (house.data / "audit").iterdir() for line in path.read_bytes().splitlines()]
    assert [line for line in lines if line["who"] == "acme" and line["source"] == "127.0.0.1" and "secret" in str(line)]


def test_grpc_is_as_private_as_http(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    tls = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with serving(tmp_path / "data", options=tls) as server:
        assert server.grpc_address is not None
        ours = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with triton_grpc.InferenceServerClient(server.grpc_address, creds=ours) as client:
            assert client.is_server_ready()
        with triton_grpc.InferenceServerClient(server.grpc_address) as plain, pytest.raises(InferenceServerException):
            plain.is_server_live(client_timeout=10)
