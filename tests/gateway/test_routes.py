"""Which variant a request goes to, while an update moves the traffic too."""

import pytest

from flatshare.core.errors import UnknownVariant
from flatshare.core.ids import EndpointName, VariantName
from flatshare.core.state import EndpointRoute, VariantRoute
from flatshare.gateway.routes import RouteTable

V, W = VariantName("v"), VariantName("w")


def variant(name: VariantName, weight: float, prefix: str) -> VariantRoute:
    return VariantRoute(name, weight, prefix, ())


MOVING = EndpointRoute(
    EndpointName("e"),
    is_multi_model=True,
    variants=(variant(V, 0.6, "old"), variant(W, 0.2, "old"), variant(V, 0.15, "new"), variant(W, 0.05, "new")),
)


def prefixes(wanted: VariantName | None) -> list[str]:
    table = RouteTable("000000000000")
    return [table.variant(MOVING, wanted, point / 100).prefix for point in range(100)]


@pytest.mark.parametrize("wanted", [None, V, W])
def test_old_and_new_share_a_variants_calls_by_weight_whether_it_is_named_or_drawn(wanted: VariantName | None) -> None:
    assert prefixes(wanted).count("new") == pytest.approx(20, abs=1)


def test_an_unknown_variant_is_told_each_name_once() -> None:
    with pytest.raises(UnknownVariant, match=r"it has v, w$"):
        RouteTable("000000000000").variant(MOVING, VariantName("x"), 0.0)
