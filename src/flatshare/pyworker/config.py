"""`pb_utils.ModelConfig`: what `auto_complete_config` may complete, and what it may not contradict."""

import json
from typing import Any

Config = dict[str, Any]


class ModelConfig:
    """The model's config while its own code completes it: inputs, outputs, batch size, dynamic batching, decoupling."""

    def __init__(self, model_config: str) -> None:
        self._config: Config = json.loads(model_config)

    def as_dict(self) -> Config:
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        stated = self._config.get("max_batch_size", 0)
        if stated > max_batch_size:
            raise ValueError(f"model '{self._name}': the config states max_batch_size {stated}, its auto_complete_config {max_batch_size}")
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        other = next((kind for kind in ("sequence_batching", "ensemble_scheduling") if kind in self._config), None)
        if other is not None:
            raise ValueError(f"model '{self._name}': the config states {other}, so auto_complete_config cannot set dynamic_batching")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Config) -> None:
        self._check_keys(transaction_policy_dict, {"decoupled"}, set(), "the transaction policy")
        if "decoupled" not in transaction_policy_dict:
            return
        policy = self._config.setdefault("model_transaction_policy", {})
        if policy.get("decoupled", transaction_policy_dict["decoupled"]) != transaction_policy_dict["decoupled"]:
            raise ValueError(f"model '{self._name}': auto_complete_config contradicts the config's decoupled: {policy['decoupled']}")
        policy["decoupled"] = transaction_policy_dict["decoupled"]

    def add_input(self, input: Config) -> None:  # noqa: A002  # the API's own name
        self._check_keys(input, {"name", "data_type", "dims", "optional"}, {"name", "data_type", "dims"}, "an input")
        self._add("input", input)

    def add_output(self, output: Config) -> None:
        self._check_keys(output, {"name", "data_type", "dims"}, {"name", "data_type", "dims"}, "an output")
        self._add("output", output)

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _check_keys(self, given: Config, known: set[str], needed: set[str], what: str) -> None:
        if unknown := given.keys() - known:
            raise ValueError(f"model '{self._name}': {what} of auto_complete_config may have {sorted(known)}, not {sorted(unknown)}")
        if missing := needed - given.keys():
            raise ValueError(f"model '{self._name}': {what} of auto_complete_config lacks {sorted(missing)}")

    def _add(self, kind: str, given: Config) -> None:
        tensors = self._config.setdefault(kind, [])
        stated = next((tensor for tensor in tensors if tensor["name"] == given["name"]), None)
        if stated is None:
            tensors.append(given)
            return
        for key, value in given.items():
            known = stated.get(key)
            if known not in (None, [], "TYPE_INVALID", value):
                raise ValueError(
                    f"model '{self._name}', {kind} '{given['name']}': the config states {key} {known}, its auto_complete_config {value}"
                )
            stated[key] = value


def get_input_config_by_name(model_config: Config, name: str) -> Config | None:
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Config, name: str) -> Config | None:
    return _by_name(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Config) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def _by_name(config: Config, kind: str, name: str) -> Config | None:
    return next((tensor for tensor in config.get(kind, []) if tensor["name"] == name), None)
