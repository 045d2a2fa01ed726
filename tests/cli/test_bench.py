"""`flatshare bench memory --only`: parts by name."""

from click.testing import CliRunner

from flatshare.bench.memory import PARTS
from flatshare.cli.bench import bench


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    result = CliRunner().invoke(bench, ["memory", "--only", "neighbours,soup"])
    assert result.exit_code == 2
    assert "soup is none of" in result.output
    assert all(name in result.output for name in PARTS)


def test_the_help_names_every_part() -> None:
    said = " ".join(CliRunner().invoke(bench, ["memory", "--help"]).output.split())
    assert all(name in said for name in PARTS)
