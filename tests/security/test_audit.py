"""The audit log: every deed a line, files of bounded size, changes not pushed out by denials."""

import asyncio
import stat
from pathlib import Path

import orjson
import pytest

from flatshare.security.audit import AuditLog, Deed, Series


def deed(number: int = 0, **changes: object) -> Deed:
    fields = {
        "at_s": 1_700_000_000.25, "who": "acme", "key_id": "K", "action": "sagemaker:CreateModel", "resources": ("model/m",),
        "source": "192.0.2.7", "result": "200", "request_id": f"r{number}",
    }  # fmt: skip
    return Deed(**(fields | changes))  # type: ignore[arg-type]  # fields of several types


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_who_did_what_when_from_where_and_how_it_ended(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.changed_now(deed())
    log.denied(deed(1, target_model="t" * 1000, reason="no", result="403 AccessDeniedException"))
    log.close()
    assert lines(tmp_path / "audit/changes.jsonl") == [
        {
            "at": "2023-11-14T22:13:20.250+00:00", "who": "acme", "key": "K", "action": "sagemaker:CreateModel",
            "resources": ["model/m"], "source": "192.0.2.7", "result": "200", "request_id": "r0",
        }
    ]  # fmt: skip
    [denial] = lines(tmp_path / "audit/denials.jsonl")
    assert denial["result"] == "403 AccessDeniedException"
    assert denial["target_model"] == "t" * 300
    assert stat.S_IMODE((tmp_path / "audit/changes.jsonl").stat().st_mode) == 0o600


def test_what_a_caller_sends_cannot_make_a_line_of_its_own(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.denied(deed(action='x"}\n{"who": "root"', target_model="a\nb"))
    log.close()
    assert len(lines(tmp_path / "denials.jsonl")) == 1


def test_files_turn_over_and_the_oldest_goes(tmp_path: Path) -> None:
    series = Series(tmp_path / "x.jsonl", max_bytes=100)
    for number in range(200):
        series.append(b"%060d\n" % number)
    series.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    assert all(path.stat().st_size <= 100 for path in files)
    assert int((tmp_path / "x.jsonl").read_bytes()) == 199
    assert int((tmp_path / "x.jsonl.8").read_bytes()) == 191


def test_a_flood_of_denials_pushes_out_no_change(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=1000)
    log.changed_now(deed(7))
    for number in range(300):
        log.denied(deed(number))
    log.close()
    assert [line["request_id"] for line in lines(tmp_path / "changes.jsonl")] == ["r7"]
    assert sum(path.stat().st_size for path in tmp_path.glob("denials*")) <= 9000


async def test_a_change_is_in_the_file_at_once_and_forced_to_the_disk_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("flatshare.security.audit._SYNC_AFTER_S", 0.01)
    monkeypatch.setattr("flatshare.security.audit.Series.sync", lambda _: loop.call_soon_threadsafe(synced.set))
    log = AuditLog(tmp_path)
    log.changed(deed())
    assert len(lines(tmp_path / "changes.jsonl")) == 1
    async with asyncio.timeout(10):
        await synced.wait()
    log.close()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full")
    series = Series(full, max_bytes=1 << 20)
    series.append(b"a line\n")
    series.close()
    said = capfd.readouterr()
    assert "audit_unwritable" in said.out + said.err
    assert "a line" in said.out + said.err
