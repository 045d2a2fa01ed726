"""What thrashes, and the servers that are compared: every model can be asked, and plain LRU knows of nothing else."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest

from flatshare.bench import thrash
from flatshare.bench.slow_store import slow_store
from flatshare.bench.tenants import tenants
from flatshare.bench.thrash import Catalogue
from flatshare.core.call import ModelSource
from flatshare.core.ids import NOBODY, ArtifactUri
from flatshare.core.settings import CacheSettings, SharingSettings, StoreLimits
from flatshare.package.importer import import_checkpoint
from flatshare.policy.tenants import TenantOf
from flatshare.store.tensors import TensorStore
from flatshare.wire import settings_toml
from tests.checkpoints import write_checkpoint


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


def test_a_message_asks_a_customer_s_models_once_and_its_reply_the_writer_again() -> None:
    chances = thrash.mixed_chances(3).reshape(3, 5)
    assert chances.sum() == pytest.approx(1)
    assert chances[:, 0] == pytest.approx(chances[:, 3])
    assert chances[:, 4] == pytest.approx(4 * chances[:, 0])
    assert chances[0] == pytest.approx(3 * chances[2])


def test_plain_lru_knows_no_deadlines_no_tenants_and_fetches_nothing_ahead_and_value_is_what_everybody_has() -> None:
    plain, lru, value = thrash.SERIES
    settings = settings_toml.parse(plain.settings)
    assert (settings.memory.order, plain.has_deadlines, settings.queue.deadline_ms) == ("lru", False, None)
    tenant_of = TenantOf(settings.memory.tenant_pattern)
    assert {tenant_of(ModelSource(f"s3://models/{name}/query", "s3://models/")) for name in ("a", "b")} == {NOBODY}
    assert settings.disk.prefetch_every_s > 1e6
    bounds = settings.queue
    assert (bounds.max_waiting_per_tenant, bounds.max_waiting_loads_per_tenant) == (bounds.max_waiting, bounds.max_waiting_loads)
    assert settings_toml.parse(lru.settings) == SharingSettings(CacheSettings(order="lru", prepacked="off"))
    assert settings_toml.parse(value.settings) == SharingSettings(CacheSettings(prepacked="off"))
    assert SharingSettings().memory.order == "value"
    assert lru.has_deadlines
    assert value.has_deadlines


def test_each_series_begins_with_the_half_that_is_asked_for_most_and_leaves_the_whole_as_it_is(tmp_path: Path) -> None:
    names = [f"c{number}/m" for number in range(4)]
    catalogue = Catalogue("equal", tmp_path / "models", tuple(names), np.full(4, 0.25))
    with slow_store(catalogue.prefix, 0.0) as remote:
        place = thrash._Place(tmp_path / "thrash", catalogue, remote)
        whole = TensorStore(place._whole / "store")
        for seed, name in enumerate(names):
            folder = write_checkpoint(catalogue.prefix / name, seed=seed)
            import_checkpoint(whole, folder, ArtifactUri(f"s3://models/{name}"), "1", StoreLimits())
        disk_bytes, data = place.prepare()
        again, _ = place.prepare()
    assert again == disk_bytes == whole.catalog.disk_bytes() // 2
    assert TensorStore(data / "store").catalog.artifacts() <= {f"s3://models/{name}" for name in names[:2]}
    assert TensorStore(data / "store").catalog.artifacts()
    assert len(whole.catalog.artifacts()) == 4
    assert whole.repair().lost_packs == ()


def test_the_slow_store_says_how_much_it_has_sent(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"0123456789")
    with slow_store(tmp_path, 0.0) as remote:
        address = remote.environment["AWS_ENDPOINT_URL_S3"]
        part = urllib.request.Request(f"{address}/models/object", headers={"Range": "bytes=2-5"})
        with urllib.request.urlopen(part, timeout=10) as answer:
            assert answer.read() == b"2345"
        with urllib.request.urlopen(f"{address}/models/object", timeout=10) as answer:
            assert answer.read() == b"0123456789"
    assert remote.sent_bytes == 14
