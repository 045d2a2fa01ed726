"""Whether an ensemble's steps fit together: every tensor made once, before it is used, and of the type that its user takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from flatshare.core.errors import BadPackage
from flatshare.package.triton.flow import flow_of
from flatshare.wire.triton_config import ENSEMBLE, ConfigTensor, TritonConfig


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor of the ensemble, and who makes it."""

    by: str
    tensor: ConfigTensor | None
    """As its maker's config states it; None if the maker's own code completes its config."""


def check_ensemble(config: TritonConfig, models: Mapping[str, TritonConfig]) -> None:
    """Raises BadPackage with the step and the tensor that are wrong. Other models pass."""
    if config.backend != ENSEMBLE:
        return
    made = {tensor.name: _Made("the caller", tensor) for tensor in config.inputs}
    for index, step in enumerate(config.steps):
        place = f"ensemble '{config.name}', step {index} ('{step.model}')"
        model = models.get(step.model)
        if model is None:
            raise BadPackage(f"{place}: no such model in the artifact; it holds {', '.join(sorted(models))}")
        _check_rows(place, config, model)
        _check_maps(place, step.inputs, step.outputs, model)
        for name, tensor in step.outputs.items():
            if tensor in made:
                raise BadPackage(f"{place}: '{tensor}' is made by {made[tensor].by} already")
            made[tensor] = _Made(f"step {index}", _stated(model.outputs, name))
    _check_uses(config, models, made)
    _check_order(config)
    _check_recursion(config.name, models)
    flow_of(config, lambda step: _is_decoupled(models[step.model], models))


def _is_decoupled(config: TritonConfig, models: Mapping[str, TritonConfig]) -> bool:
    """By what the configs state; a model's own code may still say so when it is loaded."""
    return config.is_decoupled or any(_is_decoupled(models[step.model], models) for step in config.steps if step.model in models)


def _check_rows(place: str, config: TritonConfig, model: TritonConfig) -> None:
    """A model that states no inputs completes its config by its own code."""
    if model.inputs and model.max_batch_size < config.max_batch_size:
        raise BadPackage(f"{place}: the ensemble takes {config.max_batch_size} rows at once, the model {model.max_batch_size}")


def _check_maps(place: str, inputs: Mapping[str, str], outputs: Mapping[str, str], model: TritonConfig) -> None:
    if not outputs:
        raise BadPackage(f"{place}: output_map is empty, so the step has no effect")
    for kind, given, stated in (("input", inputs, model.inputs), ("output", outputs, model.outputs)):
        names = {tensor.name for tensor in stated}
        if names and (unknown := given.keys() - names):
            raise BadPackage(f"{place}: {kind}_map names {', '.join(sorted(unknown))}; the model's {kind}s are {', '.join(sorted(names))}")
    missing = {tensor.name for tensor in model.inputs if not tensor.is_optional} - inputs.keys()
    if missing:
        raise BadPackage(f"{place}: input_map lacks the model's input {', '.join(sorted(missing))}")


def _check_uses(config: TritonConfig, models: Mapping[str, TritonConfig], made: Mapping[str, _Made]) -> None:
    for index, step in enumerate(config.steps):
        for name, tensor in step.inputs.items():
            place = f"ensemble '{config.name}', step {index} ('{step.model}')"
            if tensor not in made:
                raise BadPackage(f"{place}: nothing makes the tensor '{tensor}' that its input '{name}' takes")
            _check_fit(place, tensor, made[tensor], _stated(models[step.model].inputs, name))
    for output in config.outputs:
        if output.name not in made:
            raise BadPackage(f"ensemble '{config.name}': no step makes its output '{output.name}'")
        _check_fit(f"ensemble '{config.name}'", output.name, made[output.name], output)


def _check_fit(place: str, name: str, made: _Made, taken: ConfigTensor | None) -> None:
    if made.tensor is None or taken is None:
        return  # completed by the model's own code: known when it is loaded
    if made.tensor.datatype != taken.datatype:
        raise BadPackage(f"{place}: '{name}' is {made.tensor.datatype} where {made.by} makes it, and {taken.datatype} is taken")
    sizes = zip(made.tensor.dims, taken.dims, strict=False)
    if len(made.tensor.dims) == len(taken.dims) and any(-1 not in pair and pair[0] != pair[1] for pair in sizes):
        raise BadPackage(f"{place}: '{name}' has dims {list(made.tensor.dims)} where {made.by} makes it, and {list(taken.dims)} are taken")


def _check_order(config: TritonConfig) -> None:
    makers = {tensor: index for index, step in enumerate(config.steps) for tensor in step.outputs.values()}
    graph = {i: {makers[t] for t in step.inputs.values() if t in makers} for i, step in enumerate(config.steps)}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        names = " → ".join(config.steps[index].model for index in error.args[1])
        raise BadPackage(f"ensemble '{config.name}' goes round in a circle: {names}") from error


def _check_recursion(name: str, models: Mapping[str, TritonConfig]) -> None:
    graph = {model: {step.model for step in config.steps if step.model in models} for model, config in models.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise BadPackage(f"ensemble '{name}' calls itself: {' → '.join(error.args[1])}") from error


def _stated(tensors: tuple[ConfigTensor, ...], name: str) -> ConfigTensor | None:
    return next((tensor for tensor in tensors if tensor.name == name), None)
