"""The docs say what is there: examples run, and names in them exist."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from click import Group
from click.testing import CliRunner

from flatshare.bench import control as bench_control
from flatshare.bench.protocols import TARGETS as PROTOCOL_TARGETS
from flatshare.bench.story import TARGETS
from flatshare.cli.main import commands
from flatshare.core import errors, settings
from flatshare.core.ids import EndpointName, VariantName
from flatshare.telemetry.metrics import GatewayMetrics, InstanceReading
from flatshare.telemetry.shadows import AGREED, Comparison, ShadowMetrics, ShadowOf
from flatshare.wire import faults, settings_toml
from tests.e2e.checkpoints import write_checkpoint
from tests.e2e.servers import deploy, serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [exported] = re.findall(r"`export (AWS_[^`]+)`", README)  # a newcomer has no credentials but those that we name
    for variable in exported.split():
        monkeypatch.setenv(*variable.split("="))
    write_checkpoint(tmp_path / "models/acme/query", 1)
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with serving(tmp_path / "data") as server:
        deploy(server, "embeddings", tmp_path / "models")
        names: dict[str, object] = {}
        exec(example.replace("http://127.0.0.1:8080", server.url), names)  # our own README
        answer = names["answer"]
        assert isinstance(answer, dict)
        assert len(orjson.loads(answer["Body"].read())["embeddings"]) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    assert [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()] == []


def test_every_command_is_in_the_readme_or_the_operations_page() -> None:
    assert isinstance(commands, Group)
    with commands.make_context("flatshare", ["--help"], resilient_parsing=True) as context:
        names = commands.list_commands(context)
    assert [name for name in names if f"flatshare {name}" not in README + OPERATIONS + (ROOT / "docs/architecture.md").read_text()] == []


def test_every_command_of_the_docs_exists() -> None:
    said = set(re.findall(r"^flatshare ([a-z]+(?: [a-z]+)?)", README + OPERATIONS, re.MULTILINE))
    for words in said:
        first = words.split()[0]
        result = CliRunner().invoke(commands, [*(words.split() if first == "models" else [first]), "--help"])
        assert result.exit_code == 0, words


def test_every_metric_is_on_the_operations_page() -> None:
    metrics = GatewayMetrics()
    metrics.answered("e", 200, 0.1, {"load": 0.05})
    metrics.failed("ValidationError")
    metrics.denied("AccessDeniedException")
    shadows = ShadowMetrics(metrics.registry)
    shadows.compared(ShadowOf(EndpointName("e"), VariantName("v")), Comparison(AGREED, 0.1, 0.1))
    text = metrics.render(
        [
            InstanceReading(
                "e",
                "i",
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                {"load": 1},
                {"mapped": 1},
                {"too_late": 1},
                {"long": 1},
                0,
                0.5,
                lacks_memory=True,
                stalled_percent=0,
                refaults_per_s=0,
                major_faults_per_s=0,
            )
        ],
        {"e"},
    ).decode()
    names = set(re.findall(r"^# TYPE (flatshare_\w+)", text, re.MULTILINE))
    assert {name for name in names if f"`{name}`" not in OPERATIONS and not name.endswith("_created")} == set()
    assert len(names) >= 16


def test_every_code_that_a_caller_may_meet_is_on_the_operations_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FlatshareError)]
    found = {faults.runtime_fault(kind("x")) for kind in kinds}
    assert {f"{fault.status} {fault.code}" for fault in found if f"{fault.status} {fault.code}" not in OPERATIONS} == {
        "500 InternalFailure"
    }


def test_the_file_of_settings_on_the_operations_page_shows_the_defaults() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)
    shown, defaults = settings_toml.parse(example), settings.SharingSettings()
    assert (shown.memory, shown.queue) == (defaults.memory, defaults.queue)
    names = {
        f.name.removesuffix("_bytes")
        for kind in (settings.CacheSettings, settings.QueueSettings, settings.TenantSettings)
        for f in fields(kind)
    }
    assert {name for name in names if not re.search(rf"^(# )?{name} = ", example, re.MULTILINE)} == set()


def test_every_target_of_the_story_is_in_the_benchmark_table() -> None:
    table = (ROOT / "docs/benchmarks.md").read_text()
    assert [key for key in (*TARGETS, *bench_control.TARGETS) if f"`{key}`" not in table] == []


def test_no_component_has_more_settings_than_a_reader_holds() -> None:
    sections = [kind for kind in vars(settings).values() if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")]
    assert {kind.__name__: len(fields(kind)) for kind in sections if len(fields(kind)) > 12} == {}


@pytest.mark.slow
def test_the_examples_of_open_inference_run(tmp_path: Path) -> None:
    page = (ROOT / "docs/open-inference.md").read_text()
    write_checkpoint(tmp_path / "models/acme/query", 1)
    with serving(tmp_path / "data") as server:
        deploy(server, "embeddings", tmp_path / "models")
        assert server.grpc_address is not None
        [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        names: dict[str, Any] = {}
        exec(example.replace("127.0.0.1:8001", server.grpc_address), names)  # our own page
        names["client"].close()
        if shutil.which("curl") is None:
            return
        [command] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        script = command.replace("http://127.0.0.1:8080", server.url)
        done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60)
    vector = orjson.loads(done.stdout)["outputs"][0]["data"]
    np.testing.assert_allclose(names["vectors"][0], vector, atol=1e-5)


def test_every_status_of_open_inference_is_on_its_page() -> None:
    page = (ROOT / "docs/open-inference.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FlatshareError)]
    found = {faults.v2_fault(kind("x")) for kind in kinds}
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    missing = {f for f in found if not any(str(f.status) in row and f.grpc in row for row in rows)}
    assert missing == set()


def test_every_target_of_the_protocols_is_in_the_benchmark_table() -> None:
    table = (ROOT / "docs/benchmarks.md").read_text()
    assert [key for key in PROTOCOL_TARGETS if f"`{key}`" not in table] == []
