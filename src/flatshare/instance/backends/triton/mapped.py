"""A step that the mapped engine runs: no worker, its weights shared with every other model on the machine."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from flatshare.core.call import InferCall, Scalar
from flatshare.core.errors import ModelFailed
from flatshare.core.ids import ModelKey
from flatshare.core.repository import GRAPH, TOKENIZER, Unit
from flatshare.core.signature import Signature, Task
from flatshare.core.spec import StoredModel
from flatshare.core.tensor import Tensor
from flatshare.instance.backends.base import LoadedModel
from flatshare.instance.backends.triton import shapes
from flatshare.instance.inside import InnerModels
from flatshare.instance.workers.records import Answer, Ask
from flatshare.pyworker.frames import NamedArray
from flatshare.wire.triton_config import TritonConfig

_PARAMETERS: Mapping[Task, frozenset[str]] = {Task.EMBEDDING: frozenset({"prompt", "prompt_name"})}
_OF_SCORES = frozenset({"activation"})
"""What a request may say to the model. Its other parameters are for other steps; those that change a shape would contradict the config."""


def stored_inside(stored: StoredModel, unit: Unit) -> StoredModel | None:
    """A mapped model of a package as the engine takes it; None if the unit is of another backend."""
    if unit.encoder is None:
        return None
    place = Path(stored.package_dir, unit.folder, str(unit.version))
    return replace(
        stored, manifest=unit.encoder, graph_path=str(place / GRAPH), tokenizer_path=str(place / TOKENIZER), measured_own_bytes=None
    )


class MappedStep:
    """A model in this process. After `close` it can be asked no more."""

    def __init__(self, config: TritonConfig, key: ModelKey, model: LoadedModel, inner: InnerModels) -> None:
        self.config = config
        self._key = key
        self._model: LoadedModel | None = model
        self._inner = inner

    async def infer(self, ask: Ask) -> list[Answer]:
        if self._model is None:
            raise ModelFailed(f"model '{self.config.name}' has been unloaded")
        call = _call(shapes.for_model(ask, self.config), self._model.signature)
        result = await self._inner.run(self._model, self._key, call, ask.tenant, ask.deadline_s)
        wanted = set(ask.wanted or (tensor.name for tensor in self.config.outputs))
        outputs = tuple(NamedArray(tensor.name, tensor.datatype, tensor.data) for tensor in result.outputs if tensor.name in wanted)
        return [shapes.from_model(Answer(outputs), self.config)]

    async def stream(self, ask: Ask, on_part: Callable[[Answer], None]) -> None:
        for answer in await self.infer(ask):
            on_part(answer)

    async def close(self) -> None:
        self._model = None

    def mark_runs(self, marked: Callable[[LoadedModel], LoadedModel]) -> None:
        if self._model is not None:
            self._model = marked(self._model)


def _call(ask: Ask, signature: Signature) -> InferCall:
    """Texts as the engine takes them: a column [n, 1] of a batch is n texts, which may then run together with others."""
    ranks = {info.name: len(info.shape) for info in signature.inputs}
    inputs = {}
    for tensor in ask.inputs:
        data = tensor.data
        if data.ndim == ranks.get(tensor.name, 0) + 1 and data.shape[-1] == 1:
            data = data.reshape(data.shape[:-1])
        inputs[tensor.name] = Tensor(tensor.name, tensor.datatype, data)
    return InferCall(inputs, _parameters(ask.parameters, signature.task), ask.wanted)


def _parameters(given: Mapping[str, Scalar], task: Task) -> dict[str, Scalar]:
    known = _PARAMETERS.get(task, _OF_SCORES)
    return {name: value for name, value in given.items() if name in known}
