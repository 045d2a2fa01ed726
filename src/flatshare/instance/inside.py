"""Step 6d: models of our own engines inside a package: loaded on the loaders, run on the engine threads, each in its tenant's turn."""

import asyncio
from concurrent.futures import Executor

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import StoreUnavailable
from flatshare.core.ids import ModelKey, Tenant
from flatshare.core.spec import StoredModel
from flatshare.instance.backends.base import Backend, Footprint, LoadedModel
from flatshare.instance.workbench import Workbench


class InnerModels:
    """What a package's owner needs of the instance for a model that is only a part of it. Used on the event loop."""

    def __init__(self, engine: Backend, workbench: Workbench, loaders: Executor) -> None:
        self._engine = engine
        self._workbench = workbench
        self._loaders = loaders

    def footprint(self, stored: StoredModel) -> Footprint:
        return self._engine.footprint(stored)

    async def load(self, stored: StoredModel) -> LoadedModel:
        """Raises StoreUnavailable if the model has left the disk meanwhile."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._loaders, self._engine.load, stored)
        except FileNotFoundError as error:
            raise StoreUnavailable(f"the model left this machine's disk while it was loaded ({error.filename}): call again") from error

    async def run(self, model: LoadedModel, key: ModelKey, call: InferCall, tenant: Tenant, deadline_s: float | None) -> InferResult:
        """Raises BadInput, Overloaded, OverQuota, TooLate, and what the model raises. `key` is what its pace is remembered by."""
        model.signature.require(call)
        return (await self._workbench.infer(model, key, call, tenant, deadline_s)).result
