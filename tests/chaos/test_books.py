"""The books after every step, on a real server: leases, ledgers, and what the kernel counts."""

from functools import partial
from pathlib import Path

import pytest

from flatshare.core.ids import ArtifactUri
from flatshare.core.spec import TOKENS_PER_RUN
from flatshare.store.tensors import TensorStore
from tests.chaos.conftest import MODELS, harmed, in_parallel, target, unload
from tests.chaos.witness import Caller, Victim, require_balanced
from tests.e2e.checkpoints import POSITIONS, TEXT
from tests.e2e.servers import until

pytestmark = pytest.mark.slow
TOLERANCE = 24 << 20
LARGEST = [" ".join([TEXT] * POSITIONS)] * (TOKENS_PER_RUN // POSITIONS)
"""Cut to the model's length each: together one run of the largest size."""


def require_in_order(endpoint: Victim, residents: int) -> None:
    """Leases of nobody, ledgers as the models say, and no private memory beyond the tolerance that nobody booked."""
    require_balanced(endpoint, TOLERANCE)
    [instance] = endpoint.instances()
    assert len(instance["models"]) == residents


def test_the_books_are_in_order_after_every_step(tmp_path: Path, models: Path) -> None:
    with harmed(tmp_path) as server:
        endpoint = Victim(server, "books", models)
        caller = Caller(endpoint)
        require_in_order(endpoint, residents=0)
        caller.until_answered(target(0))
        require_in_order(endpoint, residents=1)
        in_parallel([partial(endpoint.invoke, target(0), LARGEST)] * 8)  # the workspaces of both workers
        require_in_order(endpoint, residents=1)
        in_parallel([partial(endpoint.invoke, target(number), LARGEST) for number in range(MODELS)] * 2)
        require_in_order(endpoint, residents=MODELS)
        assert unload(endpoint, target(0)) == 200
        require_in_order(endpoint, residents=MODELS - 1)
        in_parallel([partial(caller.until_answered, target(number)) for number in range(MODELS)])
        require_in_order(endpoint, residents=MODELS)
        server.unload_all()
        require_in_order(endpoint, residents=0)
        assert set(caller.statuses) == {200}


def test_what_a_load_was_seen_to_take_is_known_to_the_next_server(tmp_path: Path, models: Path) -> None:
    with harmed(tmp_path) as server:
        endpoint = Victim(server, "books", models)
        for number in range(3):  # one after the other: measured is only what happens alone, and brings nothing that others share
            endpoint.invoke(target(number))
            until(lambda: all(model["leases"] == 0 for model in endpoint.instances()[0]["models"]))
        predicted = _own_bytes(endpoint)
    store = TensorStore(tmp_path / "store")
    digest = store.catalog.last_model_of(ArtifactUri(f"file://{models}/{target(2)}"))
    assert digest is not None
    until(lambda: store.catalog.measured_own_bytes(digest) is not None)
    store.catalog.remember_footprint(digest, 50 << 20)  # as if it had been seen to take as much
    with harmed(tmp_path) as server:
        again = Victim(server, "books", models)
        until(lambda: bool(again.instances()) and "balance" in again.instances()[0], within_s=60)
        again.server.unload_all()
        again.invoke(target(2))
        assert _own_bytes(again) > predicted + (40 << 20), "it is reserved before it is loaded"


def _own_bytes(endpoint: Victim) -> int:
    """What is booked beyond the empty instance."""
    balance = endpoint.instances()[0]["balance"]
    return int(balance["anonymous"] - balance["base_anonymous"])
