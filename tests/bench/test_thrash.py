"""The catalogues that thrash: every model can be asked, customers by Zipf, and a writer for a few tokens only."""

from pathlib import Path

import numpy as np
import pytest

from flatshare.bench import thrash
from flatshare.bench.tenants import tenants
from flatshare.bench.thrash import Catalogue


def test_equal_models_are_asked_by_zipf_in_an_order_of_chance() -> None:
    wanted = tenants(6)
    catalogue = thrash.equal_models(Path(), wanted)
    assert sorted(catalogue.targets) == sorted(tenant.target for tenant in wanted)
    assert list(catalogue.targets) != [tenant.target for tenant in wanted]
    assert catalogue.chances.sum() == pytest.approx(1)
    assert catalogue.chances[0] == pytest.approx(12 * catalogue.chances[11])


def test_a_writer_is_asked_for_what_a_keystroke_shows_and_an_encoder_for_a_vector() -> None:
    catalogue = Catalogue("mixed", Path(), ("a/query", "a/writer"), np.array([0.5, 0.5]))
    chosen = np.array([1, 0], np.int64)
    target, body = catalogue.question(0, chosen)
    assert target == "a/writer"
    assert isinstance(body, dict)
    assert body["parameters"] == {"max_tokens": 8}
    target, body = catalogue.question(1, chosen)
    assert target == "a/query"
    assert isinstance(body, str)
