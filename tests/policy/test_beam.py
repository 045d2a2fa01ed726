"""Beam search as a decision: what holds for any model. That it finds what transformers finds is checked with real ones."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatshare.policy.beam import BEGINNING, BeamRules, Search, advance

END = 0


def model(seed: int, tokens: tuple[int, ...], vocabulary: int) -> NDArray[np.float32]:
    """Log-probabilities of what follows, different for each beginning."""
    dice = np.random.default_rng((seed, *tokens))
    scores = dice.normal(0, 2, vocabulary)
    found: NDArray[np.float32] = (scores - np.log(np.exp(scores).sum())).astype(np.float32)
    return found


def searched(seed: int, vocabulary: int, rules: BeamRules) -> Search:
    search = BEGINNING
    while search.running:
        search = advance(search, np.stack([model(seed, beam.tokens, vocabulary) for beam in search.running]), rules)
    return search


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 5), st.integers(1, 6), st.floats(0, 2))
def test_a_search_ends_with_texts_that_are_scored_as_they_should_be(
    seed: int, vocabulary: int, width: int, longest: int, penalty: float
) -> None:
    found = searched(seed, vocabulary, BeamRules(width, penalty, longest, frozenset({END})))
    assert 1 <= len(found.ended) <= width
    assert [text.score for text in found.ended] == sorted((text.score for text in found.ended), reverse=True)
    for text in found.ended:
        logprob = sum(float(model(seed, text.tokens[:place], vocabulary)[token]) for place, token in enumerate(text.tokens))
        np.testing.assert_allclose(text.logprob, logprob, rtol=1e-4)
        np.testing.assert_allclose(text.score, logprob / len(text.tokens) ** penalty, rtol=1e-4)
        assert len(text.tokens) <= longest
        assert END not in text.tokens[:-1]
        assert text.is_cut == (text.tokens[-1] != END)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4))
def test_a_search_as_wide_as_all_texts_finds_the_best(seed: int, vocabulary: int, longest: int) -> None:
    width = vocabulary**longest
    found = searched(seed, vocabulary, BeamRules(width, 0.0, longest, frozenset({END})))
    whole = [text for length in range(1, longest + 1) for text in product(range(vocabulary), repeat=length)]
    proper = [t for t in whole if END not in t[:-1] and (t[-1] == END or len(t) == longest)]
    best = max(sum(float(model(seed, t[:place], vocabulary)[token]) for place, token in enumerate(t)) for t in proper)
    np.testing.assert_allclose(found.ended[0].logprob, best, rtol=1e-4)


def test_what_is_impossible_is_no_beam() -> None:
    scores = np.full((1, 5), -np.inf, np.float32)
    scores[0, 3] = 0.0
    search = advance(BEGINNING, scores, BeamRules(4, 1.0, 5, frozenset({END})))
    assert [beam.tokens for beam in search.running] == [(3,)]
