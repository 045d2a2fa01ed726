"""`flatshare instance`: its options become its settings."""

import math
from typing import Any

import pytest
from structlog.contextvars import clear_contextvars

from flatshare.core.settings import InstanceSettings
from tests.cli.conftest import Flatshare


@pytest.mark.parametrize(("chosen", "recheck_s"), [((), 10.0), (("replace",), 10.0), (("keep",), math.inf)])
def test_whether_a_changed_artifact_replaces_what_is_in_memory_is_an_option(
    flatshare: Flatshare, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...], recheck_s: float
) -> None:
    seen: list[InstanceSettings] = []

    async def serve(settings: InstanceSettings, *_: Any, **__: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr("flatshare.instance.process.serve_until_stopped", serve)
    monkeypatch.setattr("flatshare.telemetry.log.configure", lambda **_: None)  # it would last beyond this test
    options = [text for value in chosen for text in ("--changed-artifacts", value)]
    assert flatshare("instance", "--socket", "s", "--store", "x", *options).status == 0
    clear_contextvars()
    assert [settings.recheck_s for settings in seen] == [recheck_s]
