"""Whose turn it is on the cores: each model that generates gets an equal share of the time, step by step."""

from collections.abc import Mapping
from typing import TypeVar

Name = TypeVar("Name")


def next_turn(used_s: Mapping[Name, float]) -> Name:
    """The one that has used the least; of equals, the one that came first."""
    return min(used_s, key=lambda name: used_s[name])


def first_use_s(used_s: Mapping[Name, float]) -> float:
    """What a newcomer is taken to have used: as much as whoever has used the least, so that it neither waits nor pushes in."""
    return min(used_s.values(), default=0.0)
