"""The SageMaker Python SDK, unmodified, in an environment of its own: v2's MultiDataModel and v3's resource classes."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flatshare.bench.server import RunningServer
from flatshare.client.aws import environment
from tests.e2e.checkpoints import pack, write_checkpoint
from tests.e2e.conftest import TENANTS
from tests.e2e.servers import clean_environment, require_vector, serving
from tests.e2e.test_artifacts import S3, _new_s3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).with_name("sdk")
ACCOUNT = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


def run(version: str, server: RunningServer, folder: Path, *arguments: str, s3: S3 | None = None) -> dict[str, Any]:
    """Run the script with that version of the SDK. What it saw."""
    place = ROOT / ".venv-sdk"
    if not (place / version).exists():
        reason = f"the SDK is not installed in {place.name}: make test does it"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    aws = environment(server.url) | ACCOUNT | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": str(place / version)}
    aws |= {"SAGEMAKER_CORE_ADMIN_CONFIG_OVERRIDE": "/nonexistent", "HOME": str(place)} | (s3.environment if s3 else {})
    told = folder / "told.json"
    command = [str(place / "bin/python"), "-W", "ignore", str(SCRIPTS / f"deploy_{version}.py"), str(told), *arguments]
    done = subprocess.run(command, env=clean_environment(aws), capture_output=True, check=False, timeout=150, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen: dict[str, Any] = orjson.loads(told.read_bytes())
    return seen


def require_vectors(seen: dict[str, Any], first: Path, second: Path) -> None:
    for name, checkpoint in (("first", first), ("second", second), ("again", first)):
        require_vector(np.asarray(seen[name], np.float32), checkpoint)


def test_v2_deploys_adds_lists_predicts_updates_and_deletes(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / name, seed) for seed, name in ((901, "acme"), (902, "globex"))]
    archives = [pack(folder, tmp_path / f"{folder.name}.tar.gz") for folder in folders]
    s3 = _new_s3(tmp_path / "s3")
    with s3.up() as client, serving(tmp_path / "data", environment=s3.environment) as server:
        client.create_bucket(Bucket="sdk-models")
        seen = run("v2", server, tmp_path, "sdk-models", *map(str, archives), s3=s3)
    require_vectors(seen, *folders)
    assert seen["listed"] == ["acme.tar.gz", "globex.tar.gz"]
    assert seen["before"] == "sdk2"
    assert seen["after"] != "sdk2"
    assert (seen["instances"], seen["left"]) == (2, [])


def test_v3_creates_invokes_updates_lists_and_deletes(server: RunningServer, checkpoints: Path, tmp_path: Path) -> None:
    seen = run("v3", server, tmp_path, f"file://{checkpoints}/", TENANTS[0], TENANTS[1])
    require_vectors(seen, checkpoints / TENANTS[0], checkpoints / TENANTS[1])
    assert seen["tags"] == {"team": "search"}
    assert (seen["after"], seen["instances"]) == ("sdk3-two", 2)
    assert (seen["all"], seen["got"], seen["left"]) == (["sdk3"], f"file://{checkpoints}/", [])
