"""`flatshare bench memory --only`: parts by name."""

from flatshare.bench.memory import PARTS
from tests.cli.conftest import Flatshare


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are(flatshare: Flatshare) -> None:
    run = flatshare("bench", "memory", "--only", "neighbours,soup")
    assert run.status == 2
    assert "soup is none of" in run.err
    assert all(name in run.err for name in PARTS)


def test_the_help_names_every_part(flatshare: Flatshare) -> None:
    said = " ".join(flatshare("bench", "memory", "--help").out.split())
    assert all(name in said for name in PARTS)
