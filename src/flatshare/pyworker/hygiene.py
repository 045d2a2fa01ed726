"""What every model's author would have to remember, done by the host: no gradients, garbage collected, memory given back."""

import ctypes
import gc
import os
import sys
import time

_TIDY_EVERY_RUNS = 64  # under steady load; when there is a pause it is done then
_TIDY_EVERY_S = 1.0
_TRIM_ABOVE_BYTES = 16 * 2**20  # heap that grew less since the last time is not worth the milliseconds
_MANY_MODULES = 20  # what a library brings; a model's own are few
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Hygiene:
    """Keeps count of runs, and tidies up in pauses or when they are many. `is_on=False` leaves it all to the models."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._runs = 0
        self._tidied_s = time.monotonic()
        self._kept_bytes = 0
        self._modules = 0
        self._has_frozen_models = False

    @property
    def is_due(self) -> bool:
        """There has been work since the last time."""
        return self._is_on and self._runs > 0

    def before_run(self) -> None:
        """Gradients are off in this thread, whatever the last model left them at."""
        torch = sys.modules.get("torch")
        if self._is_on and torch is not None:
            torch.set_grad_enabled(False)

    def after_run(self) -> None:
        self._runs += 1
        if self._is_on and self._runs >= _TIDY_EVERY_RUNS and time.monotonic() - self._tidied_s > _TIDY_EVERY_S:
            self.tidy()

    def after_import(self, *, has_models: bool) -> None:
        """What imports made lives as long as the worker: the collector, which would take a tenth of a second for torch, skips it."""
        if self._is_on and len(sys.modules) > self._modules + _MANY_MODULES:
            gc.collect()
            gc.freeze()
            self._modules = len(sys.modules)
            self._has_frozen_models = has_models

    def after_unload(self) -> None:
        """Everything the model held goes back to the system now."""
        if self._has_frozen_models:  # their cycles are among what the collector skips
            gc.unfreeze()
            self._has_frozen_models = False
            self._modules = 0
        gc.collect()
        _give_back()
        self._kept_bytes = anonymous_bytes()

    def tidy(self) -> None:
        self._runs = 0
        self._tidied_s = time.monotonic()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if anonymous_bytes() - self._kept_bytes > _TRIM_ABOVE_BYTES:
            _give_back()
            self._kept_bytes = anonymous_bytes()


def anonymous_bytes() -> int:
    """Private memory of this process: resident less shared, from statm, which costs nothing to read."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # on the way of requests
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
