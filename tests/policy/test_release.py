"""A model's versions and aliases, as pure changes of one record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadInput, FlatshareError, ReleaseConflict
from flatshare.core.ids import EndpointName
from flatshare.core.release import (
    Change,
    ModelReleases,
    Promote,
    Ready,
    Reserve,
    Resolved,
    Retire,
    RollBack,
    StartCanary,
    VersionState,
)
from flatshare.policy.release import By, apply, reserved

BY = By("ann", 1.0, "because")
BLANK = ModelReleases("acme/intent", "classification", EndpointName("flatshare-classification"))


def _reserve(index: int, parts: tuple[str, ...] = ("",), suffix: str = "") -> Reserve:
    return Reserve(f"{index:064x}", parts, suffix)


def _after(*changes: Change, start: ModelReleases = BLANK) -> ModelReleases:
    for change in changes:
        start = apply(start, change, BY)
    return start


def _deployed(*indices: int) -> ModelReleases:
    """Versions 1, 2, …, the last of them live."""
    releases = BLANK
    for number, index in enumerate(indices, 1):
        releases = _after(_reserve(index), Ready(number), Promote(number), start=releases)
    return releases


def _live(releases: ModelReleases, point: float = 0.999) -> int:
    found = releases.resolve("live", "", point)
    assert found is not None
    return found.version


def test_a_package_gets_the_next_number_and_the_same_package_the_same() -> None:
    releases = _after(_reserve(7), _reserve(8), _reserve(7))
    assert [(v.number, v.state) for v in releases.versions] == [(1, VersionState.UPLOADING), (2, VersionState.UPLOADING)]
    assert releases.revision == 2
    found = reserved(releases, f"{8:064x}")
    assert found is not None
    assert found.targets == {"": "acme/intent@2"}


def test_parts_and_archives_have_targets_of_their_own() -> None:
    version = _after(_reserve(1, ("query", "document"), ".tar.gz")).versions[0]
    assert version.targets == {"query": "acme/intent@1/query.tar.gz", "document": "acme/intent@1/document.tar.gz"}


@pytest.mark.parametrize("change", [_reserve(1, ()), _reserve(1, ("../x",)), _reserve(1, suffix="/../x"), Reserve("zz", ("",), "")])
def test_a_number_is_not_given_for_what_could_lie_elsewhere(change: Reserve) -> None:
    with pytest.raises(BadInput):
        _after(change)


def test_a_version_that_has_not_answered_cannot_be_promoted() -> None:
    with pytest.raises(ReleaseConflict, match="is uploading: only one that has answered"):
        _after(_reserve(1), Promote(1))


def test_promotion_and_the_way_back() -> None:
    releases = _deployed(1, 2, 3)
    assert _live(releases) == 3
    once = _after(RollBack(), start=releases)
    assert _live(once) == 2
    assert _live(_after(RollBack(), start=once)) == 1
    with pytest.raises(ReleaseConflict, match="no earlier version"):
        _after(RollBack(), RollBack(), start=once)


def test_the_way_back_leaves_out_versions_that_were_retired() -> None:
    assert _live(_after(Retire(2), RollBack(), start=_deployed(1, 2, 3))) == 1


def test_a_canary_answers_its_share_and_ends_either_way() -> None:
    releases = _after(_reserve(9), Ready(2), StartCanary(2, 0.25), start=_deployed(1))
    assert [_live(releases, point) for point in (0.0, 0.2499, 0.25, 0.99)] == [2, 2, 1, 1]
    assert _live(_after(RollBack(), start=releases), 0.0) == 1
    assert _live(_after(Promote(2), start=releases)) == 2
    assert _live(_after(Promote(1), start=releases), 0.0) == 1


def test_a_watcher_ends_only_the_canary_that_it_watched() -> None:
    releases = _after(_reserve(9), Ready(2), StartCanary(2, 0.5), start=_deployed(1))
    assert _after(RollBack(only_canary=1), start=releases) is releases
    assert _live(_after(RollBack(only_canary=2), start=releases), 0.0) == 1
    promoted = _after(Promote(2), start=releases)
    assert _after(RollBack(only_canary=2), start=promoted) is promoted


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_canary_of_none_or_all_is_refused(share: float) -> None:
    with pytest.raises(BadInput, match="between 0 and 1"):
        _after(_reserve(9), Ready(2), StartCanary(2, share), start=_deployed(1))


def test_what_answers_callers_cannot_be_retired() -> None:
    releases = _after(_reserve(9), Ready(3), StartCanary(3, 0.5), start=_deployed(1, 2))
    for number in (2, 3):
        with pytest.raises(ReleaseConflict, match="promote another one first"):
            _after(Retire(number), start=releases)
    retired = _after(Retire(1), start=releases)
    assert retired.resolve("1", "", 0.5) is None
    with pytest.raises(ReleaseConflict, match="is retired: only one"):
        _after(Promote(1), start=retired)
    assert [v.number for v in _after(_reserve(1), start=retired).versions] == [1, 2, 3, 4]


def test_a_label_is_an_alias_or_a_number_and_nothing_else() -> None:
    releases = _deployed(1)
    assert releases.resolve("1", "", 0.5) == Resolved(releases.versions[0].targets[""], 1)
    assert [releases.resolve(label, "", 0.5) for label in ("2", "next", "٣", "9" * 5000, "-1")] == [None] * 5


def test_a_model_with_one_artifact_answers_for_every_role_and_one_with_two_only_for_its_own() -> None:
    assert _deployed(1).resolve("live", "query", 0.5) is not None
    releases = _after(_reserve(1, ("query", "document")), Ready(1), Promote(1))
    found = releases.resolve("live", "query", 0.5)
    assert found is not None
    assert found.target == "acme/intent@1/query"
    assert releases.resolve("live", "passage", 0.5) is None


def test_history_says_who_when_what_and_why() -> None:
    event = _deployed(1, 2).history[-1]
    assert (event.who, event.at_s, event.what, event.why) == ("ann", 1.0, "live is version 2, was 1", "because")


CHANGES = st.one_of(
    st.builds(_reserve, st.integers(0, 4)),
    st.builds(Ready, st.integers(0, 5)),
    st.builds(Promote, st.integers(0, 5), st.sampled_from(["live", "next"])),
    st.builds(RollBack, st.sampled_from(["live", "next"]), st.one_of(st.none(), st.integers(0, 5))),
    st.builds(StartCanary, st.integers(0, 5), st.floats(0.1, 0.9)),
    st.builds(Retire, st.integers(0, 5)),
)


@given(st.lists(CHANGES, max_size=40))
def test_whatever_is_done_an_alias_always_stands_for_versions_that_have_answered(changes: list[Change]) -> None:
    releases = BLANK
    for change in changes:
        try:
            after = apply(releases, change, BY)
        except FlatshareError:
            continue
        assert after.revision == releases.revision + (after is not releases)
        assert apply(after, change, BY) is after or isinstance(change, RollBack)  # done again, it changes nothing
        releases = after
        states = {version.number: version.state for version in releases.versions}
        for name, alias in releases.aliases.items():
            used = [alias.version, *([alias.canary.version] if alias.canary else [])]
            assert {states[number] for number in used} == {VersionState.READY}
            assert releases.resolve(name, "", 0.05) is not None
