"""A minute in all by default; FLATSHARE_FUZZ_S=600 (or `make fuzz`) for longer. What fails is shrunk, and printed to be run again."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutation import deep, mutated
from tests.fuzz.targets import TARGETS, run

SECONDS_EACH = float(os.environ.get("FLATSHARE_FUZZ_S", "60")) / len(TARGETS)
_BATCH = 100


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_ones_pass(name: str, tmp_path: Path) -> None:
    """Or nothing behind the first check is ever reached."""
    for number, seed in enumerate(TARGETS[name].seeds):
        (tmp_path / str(number)).mkdir()
        TARGETS[name].run(seed, tmp_path / str(number))


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.seeds[0].lstrip().startswith(b"{")])
def test_no_member_of_an_object_may_be_nested_deeper_than_python_recurses(name: str) -> None:
    for content in deep(TARGETS[name].seeds[0].partition(b"\n\n")[0]):
        run(name, content)


def test_no_tensor_of_a_header_may_be_nested_deeper_than_python_recurses() -> None:
    for header in deep(b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'):
        run("weights", len(header).to_bytes(8, "little") + header + bytes(4))
    for member in deep(b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'):
        header = b'{"t": ' + member + b"}"
        run("weights", len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_EACH + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    @settings(
        max_examples=_BATCH, deadline=10_000, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)
    )
    @given(mutated(TARGETS[name].seeds))
    def batch(content: bytes) -> None:
        run(name, content)

    until_s = time.monotonic() + SECONDS_EACH
    while time.monotonic() < until_s:
        batch()
