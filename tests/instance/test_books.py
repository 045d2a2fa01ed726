"""The ledgers: what is shared counts once, and goes with its last holder."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.ids import ModelKey, TensorDigest
from flatshare.instance import books as module
from flatshare.instance.backends.base import Footprint
from flatshare.instance.books import Books, Reservation, anonymous_bytes
from flatshare.policy.admit import Rules

TENSORS = {TensorDigest(f"t{i}"): 2**i for i in range(6)}
SHARED = {f"s{i}": 100 * 2**i for i in range(4)}


@st.composite
def reservations(draw: st.DrawFn) -> Reservation:
    shared = draw(st.sets(st.sampled_from(sorted(SHARED))))
    tensors = draw(st.sets(st.sampled_from(sorted(TENSORS))))
    return Reservation(Footprint(draw(st.integers(0, 9)), {s: SHARED[s] for s in shared}), {t: TENSORS[t] for t in tensors})


@given(st.lists(st.tuples(st.integers(0, 5), reservations()), max_size=30))
def test_the_books_balance_after_every_entry(steps: list[tuple[int, Reservation]]) -> None:
    books, held = Books(10_000, 0.5, 500), dict[ModelKey, Reservation]()
    for index, reservation in steps:
        key = ModelKey(f"m{index}")
        if key in held:
            books.release(key)
            del held[key]
        else:
            books.reserve(key, reservation)
            held[key] = reservation
        assert not books.imbalances()
        balance = books.balance()
        assert balance.models == len(held)
        assert balance.mapped == sum(TENSORS[t] for t in {t for r in held.values() for t in r.tensors})
        shared = sum(SHARED[s] for s in {s for r in held.values() for s in r.footprint.shared})
        assert balance.anonymous == 500 + shared + sum(r.footprint.own_bytes for r in held.values())


@pytest.mark.parametrize(
    ("ledger", "harm"),
    [("_own_bytes", "own"), ("_shared_bytes", "shared"), ("_mapped_bytes", "mapped"), ("_holders", "holders"), ("_sharers", "sharers")],
)
def test_a_ledger_that_does_not_add_up_is_named(ledger: str, harm: str) -> None:
    books = Books(10_000, 0.5, 500)
    books.reserve(ModelKey("m"), Reservation(Footprint(1, {"s0": 100}), TENSORS))
    assert books.imbalances() == ()
    before = getattr(books, ledger)
    setattr(books, ledger, before + (Counter({"another": 1}) if isinstance(before, Counter) else 1))
    assert books.imbalances() == (harm,)


def test_a_model_is_entered_once() -> None:
    books = Books(10_000, 0.5, 500)
    books.reserve(ModelKey("m"), Reservation(Footprint(1, {}), {}))
    with pytest.raises(AssertionError, match="reserved twice"):
        books.reserve(ModelKey("m"), Reservation(Footprint(1, {}), {}))


def test_what_the_kernel_measures_counts_if_it_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books(10_000, 0.5, 500)
    for measured, expected in ((0, 500), (499, 500), (3_000, 3_000)):
        monkeypatch.setattr(module, "anonymous_bytes", lambda measured=measured: measured)
        assert books.view((), Rules()).anonymous == expected
    assert books.balance().anonymous == 500


def test_the_view_has_the_limits_of_the_moment() -> None:
    books = Books(10_000, 0.25, 500)
    assert (books.view((), Rules()).memory_limit, books.view((), Rules()).anonymous_limit) == (10_000, 2_500)
    books.set_memory(2_000)
    assert (books.view((), Rules()).memory_limit, books.view((), Rules()).anonymous_limit) == (2_000, 500)


def test_private_memory_is_read_from_the_kernel() -> None:
    before = anonymous_bytes()
    ballast = bytearray(b"x") * (64 << 20)
    assert 60 << 20 < anonymous_bytes() - before < 70 << 20
    del ballast
