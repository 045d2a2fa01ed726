"""The file of settings: what it says is what one gets, and what it does not know stops it."""

import re

import pytest

from flatshare.core.errors import BadInput
from flatshare.core.settings import CacheSettings, DiskSettings, QueueSettings, SharingSettings, TenantSettings
from flatshare.wire.settings_toml import parse

EVERYTHING = """
[memory]
order = "value"
mode = "all-resident"
pinned = ["acme/*"]
ttl_s = 600
scratch_share = 0.1
prepacked = "off"
tenant_pattern = '([^-]+)-'

[queue]
max_waiting = 10
deadline_ms = 500
batch_tokens = 0

[disk]
bandwidth = "100MiB"
ahead_share = 0.5

[tenants.acme]
weight = 2
floor = "200MiB"
ceiling = "1GiB"
max_waiting = 5

[tenants.default]
ceiling = 1048576
"""


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == SharingSettings()


def test_every_kind_of_value_arrives() -> None:
    settings = parse(EVERYTHING)
    assert settings.memory == CacheSettings("value", "all-resident", ("acme/*",), 600.0, 0.1, "off", "([^-]+)-")
    assert settings.queue == QueueSettings(max_waiting=10, deadline_ms=500.0, batch_tokens=0)
    assert settings.disk == DiskSettings(bandwidth_bytes=100 * 2**20, ahead_share=0.5)
    acme, default = settings.tenants.values()
    assert acme == TenantSettings(2.0, 200 * 2**20, 2**30, 5)
    assert (settings.tenant(next(iter(settings.tenants))), settings.tenant("other")) == (acme, default)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[memory", "is not TOML"),
        ("[memroy]", "has no key 'memroy': did you mean 'memory'"),
        ("[memory]\nttl = 5", "has no key 'ttl': did you mean 'ttl_s'"),
        ("[tenants.acme]\nfloor_bytes = 5", "did you mean 'floor'"),
        ("[queue]\nnonsense = 1", "it knows"),
        ('[memory]\norder = "fifo"', "must be one of 'value', 'lru'"),
        ('[memory]\nttl_s = "long"', "must be a number"),
        ("[memory]\nttl_s = 0", "above zero"),
        ("[memory]\nscratch_share = 1.0", "below 1"),
        ("[memory]\npinned = 'acme'", "list of texts"),
        ("[memory]\ntenant_pattern = '['", "regular expression"),
        ("[memory]\ntenant_pattern = 'a'", "one group"),
        ("[queue]\nmax_waiting = 1.5", "whole number"),
        ("[queue]\nmax_waiting = true", "whole number"),
        ("[queue]\nmax_waiting = -1", "above zero"),
        ("[disk]\nbandwidth = 0", "above zero"),
        ("[disk]\nahead_share = 1", "below 1"),
        ("[disk]\nparallel_fetches = 0", "above zero"),
        ("[tenants]\nacme = 3", "must be a table"),
        ('[tenants.acme]\nfloor = "much"', "is not a size"),
        ('[tenants.acme]\nfloor = "2GiB"\nceiling = "1GiB"', "floor above its ceiling"),
    ],
)
def test_what_is_not_understood_is_named(text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        parse(text)
