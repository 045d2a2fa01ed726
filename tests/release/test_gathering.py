"""Ensembles of a Triton repository are gathered with their steps, however deep, into packages that answer alone."""

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from flatshare.release.deploying import Wish, deploy
from flatshare.release.gathering import Gathered, gather, laid_out
from flatshare.release.packaging import PackageRequest, make_package
from flatshare.release.site import Site
from tests.contract.packages import DOUBLE, config


def _model(repository: Path, name: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config())
    (repository / name / "1/model.py").write_text(dedent(DOUBLE))


def _ensemble(repository: Path, name: str, *steps: str) -> None:
    """A → each step → B."""
    places = ["A", *(f"t{index}" for index in range(1, len(steps))), "B"]
    step = [
        f'{{ model_name: "{model}" model_version: -1 input_map {{ key: "A" value: "{places[i]}" }} '
        f'output_map {{ key: "B" value: "{places[i + 1]}" }} }}'
        for i, model in enumerate(steps)
    ]
    (repository / name / "1").mkdir(parents=True)
    scheduling = f'platform: "ensemble" max_batch_size: 4 ensemble_scheduling {{ step [ {", ".join(step)} ] }}'
    (repository / name / "config.pbtxt").write_text(config(more=scheduling))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two ensembles that share a step; one calls the other. And a model for itself."""
    folder = tmp_path / "repository"
    for name in ("double", "again", "alone"):
        _model(folder, name)
    _ensemble(folder, "four", "double", "again")
    _ensemble(folder, "eight", "four", "double")
    return folder


def _names(found: list[Gathered]) -> dict[str, set[str]]:
    return {one.name: {folder.name for folder in one.folders} for one in found}


def test_steps_come_with_their_ensembles_and_not_for_themselves(repository: Path) -> None:
    assert _names(gather(repository)) == {"alone": {"alone"}, "eight": {"eight", "four", "double", "again"}}


def test_an_ensemble_without_a_step_is_named_and_keeps_nobody_else(repository: Path) -> None:
    _ensemble(repository, "broken", "double", "nowhere")
    (repository / "worse").mkdir()
    (repository / "worse/config.pbtxt").write_text("nonsense {")
    _ensemble(repository, "upon", "worse")
    found = {one.name: one for one in gather(repository)}
    assert "step 'nowhere' of ensemble 'broken' is not in the repository" in found["broken"].left
    assert "config.pbtxt" in found["worse"].left
    assert "step 'worse' of ensemble 'upon' cannot come over" in found["upon"].left
    assert found["eight"].left == ""


@pytest.mark.slow
def test_a_gathered_ensemble_answers(repository: Path, server: RunningServer, site: Site, tmp_path: Path) -> None:
    [eight] = [one for one in gather(repository) if one.name == "eight"]
    source = laid_out(eight, tmp_path / "laid")
    made = make_package(PackageRequest("acme/eight", "triton", {"": source}, {}, None, "", "tar.gz", tmp_path / "made.package"))
    deploy(site, made, Wish())
    with Models("acme", url=server.url) as models:
        found = models.infer("eight", {"A": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(found["B"], np.full((1, 3), 8, np.float32))
