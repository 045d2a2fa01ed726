"""What is remembered of cold starts."""

from flatshare.core.ids import EndpointName, TargetModel
from flatshare.gateway.cold import ColdStarts

ENDPOINT = EndpointName("e")


def test_only_calls_that_waited_are_listed_with_why() -> None:
    cold = ColdStarts()
    cold.note(ENDPOINT, TargetModel("a"), 0.5)
    cold.note(ENDPOINT, TargetModel("a"), 0.0)
    cold.note(ENDPOINT, TargetModel("a"), 0.25)
    cold.note(ENDPOINT, TargetModel("b"), 0.0)
    cold.note(ENDPOINT, TargetModel("b"), 0.125, "unloaded")
    found = [(one["target"], one["waited_ms"], one["why"].split()[0]) for one in cold.report()]
    assert found == [("a", 500.0, "first"), ("a", 250.0, "evicted"), ("b", 125.0, "unloaded")]


def test_the_oldest_go_beyond_the_bound() -> None:
    cold = ColdStarts()
    for index in range(1500):
        cold.note(ENDPOINT, TargetModel(str(index)), 0.1)
    assert [cold.report()[0]["target"], len(cold.report())] == ["500", 1000]
