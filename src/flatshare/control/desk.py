"""Step 2 of 4 on a deployment's path: what an operation has at hand, and the sentences that all operations share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatshare.control.state import Definition, Endpoint, Rows
from flatshare.core.errors import UnknownEndpoint, ValidationFailed
from flatshare.policy.diff import Slot
from flatshare.policy.residence import Holding
from flatshare.wire.aws_shapes import Params


@dataclass(frozen=True, slots=True)
class Arns:
    """How AWS names things of one account in one region."""

    region: str
    account: str

    def model(self, name: str) -> str:
        return self._arn("model", name)

    def config(self, name: str) -> str:
        return self._arn("endpoint-config", name)

    def endpoint(self, name: str) -> str:
        return self._arn("endpoint", name)

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{kind}/{name}"


@dataclass(frozen=True, slots=True)
class Residence:
    """What has to fit where: looked up before the transaction, which must not wait for a store."""

    memory_bytes: int
    below: Mapping[str, Holding]
    """The models below each prefix that was looked at."""


@dataclass(frozen=True, slots=True)
class Desk:
    """One operation's: a transaction, the moment, and what was observed."""

    rows: Rows
    arns: Arns
    now_s: float
    max_instances: int
    ready_counts: Mapping[Slot, int]
    residence: Residence | None = None
    """None unless every model has to stay in memory."""

    def model(self, name: str) -> Definition:
        return self.rows.models.find(name) or _fail(f'Could not find model "{self.arns.model(name)}".')

    def config(self, name: str) -> Definition:
        return self.rows.configs.find(name) or _fail(f'Could not find endpoint configuration "{self.arns.config(name)}".')

    def endpoint(self, name: str) -> Endpoint:
        endpoint = self.rows.endpoint(name)
        if endpoint is None:
            raise UnknownEndpoint(f'Could not find endpoint "{self.arns.endpoint(name)}".')
        return endpoint


def refuse_members(params: Mapping[str, Any], reasons: Mapping[str, str], where: str) -> None:
    """Raises if a member is set that would change what the caller gets, and that we cannot honour."""
    for name, reason in reasons.items():
        if params.get(name) not in (None, False):
            raise ValidationFailed(f"{where}{name} is not supported by flatshare: {reason}")


def as_tags(params: Params) -> dict[str, str]:
    """The call's Tags, checked."""
    listed = params.get("Tags", [])
    tags = {tag["Key"]: tag["Value"] for tag in listed}
    if len(tags) < len(listed):
        raise ValidationFailed("Tags names a key more than once: give each key one value.")
    for key in tags:
        if key.lower().startswith("aws:"):
            raise ValidationFailed(f"The tag key '{key}' begins with aws:, which is reserved: choose another key.")
    return tags


def _fail(sentence: str) -> Definition:
    raise ValidationFailed(sentence)
