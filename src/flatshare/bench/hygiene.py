"""What the host's hygiene brings to models that do without it, and what it costs: two instances, one with `--no-tidy`, asked in turns."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from flatshare.bench.contestants import flatshare_instance
from flatshare.bench.machine import family, memory_of
from flatshare.bench.numbers import median
from flatshare.bench.python_models import write_untidy
from flatshare.bench.server import PlainCaller

_ROWS, _WIDTH = 128, 512
_SETTLED_S = 3.0  # the pause in which the host tidies up


def run(folder: Path, calls: int, begin: Callable[[str, int], Callable[[], None]]) -> dict[str, float]:
    """Private memory that the calls left behind, and the time of a call, each with and without."""
    model = write_untidy(folder / "untidy")
    values = np.random.default_rng(0).standard_normal(_ROWS * _WIDTH, np.float32)
    fields = {"inputs": [{"name": "A", "datatype": "FP32", "shape": [_ROWS * _WIDTH], "data": values}]}
    body = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    step = begin("an untidy model, with and without the host's hygiene", calls)
    with flatshare_instance(folder / "on") as tidy, flatshare_instance(folder / "off", "--no-tidy") as untidy:
        both = {"on": tidy, "off": untidy}
        for instance in both.values():
            instance.load("untidy", model)
            instance.invoke("untidy", body)
        time.sleep(_SETTLED_S)
        before = {name: memory_of(family(instance.pid)).anonymous_mb for name, instance in both.items()}
        times: dict[str, list[float]] = {"on": [], "off": []}
        callers = {name: PlainCaller.to_port(instance.port) for name, instance in both.items()}
        for _ in range(calls):
            for name, series in times.items():
                started = time.perf_counter()
                if callers[name].request("POST", "/models/untidy/invoke", body)[0] != 200:
                    raise RuntimeError("the untidy model did not answer")
                series.append(1e3 * (time.perf_counter() - started))
            step()
        time.sleep(_SETTLED_S)
        kept = {name: memory_of(family(instance.pid)).anonymous_mb - before[name] for name, instance in both.items()}
    return {
        "python_hygiene_kept_mb": kept["on"],
        "python_hygiene_off_kept_mb": kept["off"],
        "python_hygiene_call_p50_ms": median(times["on"]),
        "python_hygiene_off_call_p50_ms": median(times["off"]),
    }
