"""Two real servers over one PostgreSQL: one acts, and when it is killed the other takes over with everything that was deployed."""

from pathlib import Path

import pytest

from flatshare.bench.server import PlainCaller, RunningServer
from tests.control.postgres import running_postgres
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import Endpoint, deploy, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def ping(server: RunningServer) -> tuple[int, bytes]:
    with PlainCaller.to_port(server.port) as caller:
        return caller.request("GET", "/ping", b"")


def test_a_second_server_takes_over_from_one_that_was_killed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models/acme", 960)
    with running_postgres() as address:
        environment = {"FLATSHARE_DATABASE_URL": address.format(database="postgres")}
        with serving(tmp_path / "first", environment=environment) as first, serving(tmp_path / "second", environment=environment) as second:
            endpoint = deploy(first, "shared", tmp_path / "models")
            endpoint.require_right("acme")
            other = Endpoint(second, "shared", endpoint.folder)
            assert second.sagemaker.describe_endpoint(EndpointName="shared")["EndpointStatus"] == "InService"
            until(lambda: other.failure(TargetModel="acme").status == 503)  # known there as soon as it looks, and nothing runs there
            assert ping(first) == (200, b'{"status":"ok"}')
            status, said = ping(second)
            assert (status, b"stands by" in said) == (503, True)
            second.sagemaker.add_tags(
                ResourceArn="arn:aws:sagemaker:us-east-1:000000000000:endpoint/shared", Tags=[{"Key": "from", "Value": "second"}]
            )
            first.process.kill()
            until(lambda: len(other.instances()) == 1 and "balance" in other.instances()[0], within_s=60.0)
            other.require_right("acme")
            until(lambda: ping(second)[0] == 200)
            until(lambda: second.sagemaker.describe_endpoint(EndpointName="shared")["EndpointStatus"] == "InService")
            tags = second.sagemaker.list_tags(ResourceArn="arn:aws:sagemaker:us-east-1:000000000000:endpoint/shared")["Tags"]
            assert tags == [{"Key": "from", "Value": "second"}]
            second.sagemaker.delete_endpoint(EndpointName="shared")
