"""Which token comes next: what is kept, what is likelier, and what chance may do."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flatshare.policy.decode import Sampling, candidates, choose, log_probabilities, only, penalised, without

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-20, 20, width=32))
RULES = st.builds(Sampling, st.floats(0.1, 5), st.integers(0, 10), st.floats(0.05, 1))


@given(LOGITS, RULES, st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_is_a_candidate(logits: NDArray[np.float32], rules: Sampling, dice: float) -> None:
    assert choose(logits, rules, dice) in candidates(logits, rules)[0]


@given(LOGITS, RULES)
def test_candidates_are_the_likeliest_and_no_more_than_needed(logits: NDArray[np.float32], rules: Sampling) -> None:
    tokens, weights = candidates(logits, rules)
    assert len(set(tokens.tolist())) == len(tokens) >= 1
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-9)
    assert logits[tokens].min() >= np.delete(logits, tokens).max(initial=-np.inf)
    if rules.top_k:
        assert len(tokens) <= rules.top_k
    pool = np.sort(logits.astype(np.float64) / rules.temperature)[::-1][: rules.top_k or None]
    shares = np.exp(pool - pool[0]) / np.exp(pool - pool[0]).sum()
    assert shares[: len(tokens)].sum() >= rules.top_p - 1e-9, "they reach top-p"
    assert shares[: len(tokens) - 1].sum() < rules.top_p + 1e-9, "without the last they do not"


@given(st.integers(0, 10**6), st.floats(0.1, 2), st.floats(0.05, 0.99))
def test_looking_at_the_highest_first_changes_nothing(seed: int, temperature: float, top_p: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, 5000).astype(np.float32)
    tokens, weights = candidates(logits, Sampling(temperature, 0, top_p))
    order = np.argsort(-(logits.astype(np.float64) / temperature), kind="stable")
    np.testing.assert_array_equal(tokens, order[: len(tokens)])
    assert weights[0] >= weights[-1]


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_greedy_ignores_chance_and_takes_the_first_of_equals(logits: NDArray[np.float32], dice: float) -> None:
    assert choose(logits, Sampling(0, 3, 0.5), dice) == int(np.flatnonzero(logits == logits.max())[0])


@given(LOGITS)
def test_chance_draws_as_often_as_the_probabilities_say(logits: NDArray[np.float32]) -> None:
    rules = Sampling(1.0, 0, 1.0)
    tokens, weights = candidates(logits, rules)
    bounds = np.concatenate([[0], np.cumsum(weights)])
    for token, low, high in zip(tokens, bounds, bounds[1:], strict=False):
        if high - low > 1e-6:
            assert choose(logits, rules, (low + high) / 2) == token


@given(LOGITS)
def test_log_probabilities_are_normal(logits: NDArray[np.float32]) -> None:
    found = log_probabilities(logits)
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(), 1, rtol=1e-4)
    assert found[logits.argmax()] == found.max()  # rounding may make others its equals


@given(LOGITS, st.floats(1.01, 3))
def test_a_penalty_makes_what_was_seen_less_likely_and_touches_nothing_else(logits: NDArray[np.float32], penalty: float) -> None:
    seen = np.array([0], np.int64)
    changed = penalised(logits, seen, penalty)
    assert changed[0] <= logits[0] or logits[0] == 0
    np.testing.assert_array_equal(changed[1:], logits[1:])


@given(LOGITS)
def test_what_is_not_permitted_is_impossible(logits: NDArray[np.float32]) -> None:
    assert choose(only(logits, np.array([len(logits) - 1])), Sampling(1.0, 0, 1.0), 0.99) == len(logits) - 1
    if len(logits) > 1:
        best = int(logits.argmax())
        assert choose(without(logits, (best,)), Sampling(0, 0, 1), 0) != best
