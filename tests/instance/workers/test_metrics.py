"""What models count for themselves, as the instance tells it."""

from typing import Any

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
            for bad in (lambda: self.words.increment(-1), lambda: self.words.set(1), lambda: pb_utils.MetricFamily("s", "", "summary")):
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


OBSERVING = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            family = pb_utils.MetricFamily("took", "Seconds", pb_utils.MetricFamily.HISTOGRAM)
            self.took = family.Metric(labels={"step": "all"}, buckets=[1, 2.5])
            count = pb_utils.MetricFamily("count", "Seconds", pb_utils.MetricFamily.COUNTER).Metric()
            wrong = [lambda buckets=buckets: family.Metric(buckets=buckets) for buckets in (None, [2, 1], [1, 1], [float("inf")], (1, 2))]
            wrong += [lambda: self.took.increment(1), lambda: self.took.set(1), self.took.value, lambda: count.observe(1)]
            self.refused = 0.0
            for call in wrong:
                try:
                    call()
                except pb_utils.TritonModelException:
                    self.refused += 1

        def execute(self, requests):
            for request in requests:
                self.took.observe(float(request.inputs()[0].as_numpy()[0, 0]))
            try:
                self.took.observe(float("nan"))
            except pb_utils.TritonModelException as error:
                assert "finite" in str(error)
            found = np.array([[self.refused]], np.float32)
            return [pb_utils.InferenceResponse([pb_utils.Tensor("B", found)]) for _ in requests]
"""


@pytest.mark.slow
async def test_histograms_of_all_models_are_added_bucket_by_bucket(hotel: Hotel) -> None:
    models = [await hotel.load_code(OBSERVING) for _ in range(2)]
    for model, values in zip(models, ((0.5, 1, 7), (2, 2.5)), strict=True):
        for value in values:
            assert numbers(await model.infer(call(value))) == [9]
    [found] = hotel.backend.pool.metrics.readings()
    assert found == ModelMetric("took", "histogram", "Seconds", {"step": "all"}, 13.0, (1.0, 2.5), (2, 2, 1))


def test_a_histogram_that_does_not_fit_what_is_known_is_dropped() -> None:
    metrics = ModelMetrics()
    good: dict[str, Any] = {
        "name": "took",
        "kind": "histogram",
        "description": "",
        "labels": {},
        "value": 1.5,
        "bounds": [1.0],
        "counts": [1, 1],
    }
    bad = [
        good | {"counts": [1]},
        good | {"counts": [1, -1]},
        good | {"bounds": [2.0]},
        good | {"labels": {"le": "1"}},
        good | {"name": "other", "bounds": [], "counts": []},
        good | {"kind": "counter"},
        good | {"name": "down", "bounds": [2.0, 1.0], "counts": [0, 0, 0]},
        good | {"name": "endless", "bounds": [1.0, float("inf")], "counts": [0, 0, 0]},
        good | {"name": "wide", "bounds": [*range(2000)], "counts": [0] * 2001},
    ]
    metrics.take([good, good, *bad], "m")
    assert metrics.dropped == len(bad)
    assert metrics.readings() == [ModelMetric("took", "histogram", "", {}, 3.0, (1.0,), (2, 2))]


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
        good | {"name": "strange", "kind": "summary"},
        good | {"value": float("inf")},
    ]
    metrics.take([good, *bad], "m")
    assert metrics.readings() == [ModelMetric("mine", "counter", "", {"user": "1"}, 1.0)]
    assert metrics.dropped == len(bad)
    metrics.take([good | {"labels": {"user": str(n)}} for n in range(5000)], "m")
    assert len(metrics.readings()) == 1000
