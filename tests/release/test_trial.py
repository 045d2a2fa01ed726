"""Packages are tried one after the other; one that brings the instance down costs the next one nothing."""

import os
import signal

import pytest

from flatshare.core.errors import BadPackage
from flatshare.release.trial import Trial
from tests.release.conftest import Packages

pytestmark = pytest.mark.slow


def test_one_instance_tries_all_and_is_replaced_when_it_was_brought_down(packages: Packages) -> None:
    first, second = packages("acme/embedding", 1), packages("acme/embedding", 2)
    with Trial(0) as bench:
        assert bench._instance is not None
        answered = [{name: one.digest for name, one in bench.answers(made).items()} for made in (first, second)]
        assert answered == [first.record.answered_as, second.record.answered_as]
        pid = bench._instance.process.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BadPackage, match="the model brought down the instance that tried it"):
            bench.answers(first)
        assert bench.answers(second)[""].digest == second.record.answered_as[""]
        assert bench._instance.process.pid != pid
