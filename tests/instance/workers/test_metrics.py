"""What models count for themselves, as the instance tells it."""

import pytest

from flatshare.core.readings import ModelMetric
from flatshare.instance.workers.metrics import ModelMetrics
from tests.instance.workers.conftest import Hotel, call, numbers

COUNTING = """
    import threading
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.seen = pb_utils.MetricFamily(name="words_seen", description="Words", kind=pb_utils.MetricFamily.COUNTER)
            self.words = self.seen.Metric(labels={"language": "en"})
            self.depth = pb_utils.MetricFamily("depth", "Now", pb_utils.MetricFamily.GAUGE).Metric()

        def execute(self, requests):
            refused = 0.0
            for bad in (lambda: self.words.increment(-1), lambda: self.words.set(1), lambda: pb_utils.MetricFamily("h", "", "histogram")):
                try:
                    bad()
                except pb_utils.TritonModelException:
                    refused += 1
            thread = threading.Thread(target=lambda: self.words.increment(2))
            thread.start()
            thread.join()
            self.depth.set(7)
            self.depth.increment(-3)
            found = np.array([[self.words.value(), self.depth.value(), refused]], np.float32)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", found)]) for _ in requests]
"""


@pytest.mark.slow
async def test_counters_of_all_models_are_added_and_gauges_are_as_they_were_last_set(hotel: Hotel) -> None:
    models = [await hotel.load_code(COUNTING) for _ in range(2)]
    assert numbers(await models[0].infer(call(0))) == [2, 4, 3]
    assert numbers(await models[0].infer(call(0))) == [4, 4, 3]
    assert numbers(await models[1].infer(call(0))) == [2, 4, 3]
    assert hotel.backend.pool.metrics.readings() == [
        ModelMetric("words_seen", "counter", "Words", {"language": "en"}, 6.0),
        ModelMetric("depth", "gauge", "Now", {}, 4.0),
    ]


def test_names_and_labels_are_few_short_and_not_the_platforms() -> None:
    metrics = ModelMetrics()
    good = {"name": "mine", "kind": "counter", "description": "", "labels": {"user": "1"}, "value": 1.0}
    bad: list[dict[str, object]] = [
        good | {"name": "flatshare_requests"},
        good | {"name": "no name"},
        good | {"labels": {"endpoint": "x"}},
        good | {"labels": {"user": "x" * 200}},
        good | {"labels": {f"l{n}": "x" for n in range(20)}},
        good | {"kind": "gauge"},
        good | {"value": float("inf")},
    ]
    metrics.take([good, *bad], "m")
    assert metrics.readings() == [ModelMetric("mine", "counter", "", {"user": "1"}, 1.0)]
    assert metrics.dropped == len(bad)
    metrics.take([good | {"labels": {"user": str(n)}} for n in range(5000)], "m")
    assert len(metrics.readings()) == 1000
