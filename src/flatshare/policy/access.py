"""May this caller do that? Denied, unless a grant says otherwise. The same question on every road: SageMaker, v2, status, metrics."""

import re
from dataclasses import dataclass
from functools import lru_cache

from flatshare.core.access import Ask, Grant, Principal


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes, or no and why."""

    is_allowed: bool
    reason: str = ""


_YES = Verdict(is_allowed=True)


def decide(principal: Principal, ask: Ask) -> Verdict:
    """Every resource that is named must be covered, each by one grant that also covers the action and the target model."""
    able = [grant for grant in principal.grants if _covers_action(grant, ask.action)]
    if not able:
        return _no(f"no identity-based policy allows the {ask.action} action")
    for name in [resource.name for resource in ask.resources] or ["*"]:
        on_it = [grant for grant in able if _is_like_any(grant.endpoints, name)]
        if not on_it:
            return _no(f"no identity-based policy allows the {ask.action} action on '{name}'")
        if ask.target_model is not None and not any(_is_like_any(grant.target_models, _key(ask.target_model)) for grant in on_it):
            return _no(f"no identity-based policy allows the {ask.action} action for TargetModel '{ask.target_model}'")
    return _YES


def is_like(pattern: str, text: str) -> bool:
    """IAM's StringLike: `*` is any text, with slashes in it too, and `?` any one character; upper and lower case differ."""
    return _compiled(pattern).fullmatch(text) is not None


def _covers_action(grant: Grant, action: str) -> bool:
    return any(is_like(pattern.lower(), action.lower()) for pattern in grant.actions)  # in IAM, actions are alike in any case


def _is_like_any(patterns: tuple[str, ...], text: str) -> bool:
    return any(is_like(pattern, text) for pattern in patterns)


def _key(target_model: str) -> str:
    """The artifact's key, which is what is granted: slashes at the ends make no difference to where it lies."""
    return target_model.strip("/")


def _no(reason: str) -> Verdict:
    return Verdict(is_allowed=False, reason=reason)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """The parts between stars in atomic groups: no pattern makes a match take more than linear time per part."""
    first, *others = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", pattern))
    if not others:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in others[:-1])
    return re.compile(f"{first}{middle}.*{others[-1]}", re.DOTALL)
