"""Names that follow from what a model is, so that whoever deploys it and whoever calls it need not agree on anything else.

model     acme/intent                      tenant and name
endpoint  flatshare-classification         one per kind of model and fleet, shared by all tenants
target    acme/intent@7                    a version; acme/embedding@7/query if the model has parts
          acme/intent@live                 an alias: the gateway looks up which version it names
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from flatshare.core.errors import BadInput
from flatshare.core.ids import EndpointName, TargetModel

LIVE = "live"
"""The alias that callers who name no version are answered by."""
DEFAULT_FLEET = "flatshare"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_LABELLED = re.compile(r"(?P<model>[^@]+)@(?P<label>[^@/]+)(?:/(?P<part>[^@]+))?")
_MAX_ENDPOINT = 63  # botocore's service model: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A target model that names a model's version or alias, taken apart."""

    model: str
    label: str
    part: str


@lru_cache(maxsize=1024)
def endpoint_name(kind: str, fleet: str = DEFAULT_FLEET) -> EndpointName:
    """The endpoint of all models of one kind. Two pairs never share a name: what a name cannot say is told apart by a digest."""
    said = f"{fleet}-{kind}"
    plain = re.sub(r"[^A-Za-z0-9]+", "-", said).strip("-")
    if plain == said and len(said) <= _MAX_ENDPOINT and "-" not in kind:
        return EndpointName(said)
    mark = sha256(f"{fleet}\0{kind}".encode()).hexdigest()[:8]
    return EndpointName(f"{plain[: _MAX_ENDPOINT - 9].strip('-')}-{mark}".lstrip("-"))


def model_name(tenant: str, name: str) -> str:
    """Raises BadInput for a tenant or a name that could not be a part of a path."""
    for word, what in ((tenant, "tenant"), (name, "model name")):
        if not _WORD.fullmatch(word):
            raise BadInput(f"{what} {word[:80]!r} must be 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', and begin with a letter or digit")
    return f"{tenant}/{name}"


def checked_alias(alias: str) -> str:
    """Raises BadInput for a word that is no alias: a number would be taken for a version."""
    if not _ALIAS.fullmatch(alias):
        raise BadInput(f"alias {alias[:80]!r} must be 1 to 32 of a-z, 0-9 and '-', and begin with a letter")
    return alias


def labelled_target(model: str, label: str, part: str = "") -> TargetModel:
    """What a caller names: `acme/intent@live`, `acme/embedding@7/query`."""
    return TargetModel(f"{model}@{label}/{part}" if part else f"{model}@{label}")


def parse_target(target: str) -> Labelled | None:
    """None for a target model that is a plain key."""
    found = _LABELLED.fullmatch(target)
    return Labelled(found["model"], found["label"], found["part"] or "") if found else None
