"""What control tells the gateway: which endpoints answer, through which instances."""

from dataclasses import dataclass

from flatshare.core.ids import EndpointName, InstanceId, VariantName


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """Where an instance listens: a Unix socket, since every instance of the local fleet is on this machine."""

    id: InstanceId
    socket_path: str


@dataclass(frozen=True, slots=True)
class VariantRoute:
    """One production variant in service."""

    name: VariantName
    weight: float
    prefix: str
    """ModelDataUrl: `s3://bucket/prefix/` or `file:///folder/`; target models are keys below it."""
    instances: tuple[InstanceAddress, ...]


@dataclass(frozen=True, slots=True)
class EndpointRoute:
    name: EndpointName
    is_multi_model: bool
    variants: tuple[VariantRoute, ...]
    shadows: tuple[VariantRoute, ...] = ()
    """Variants that get copies of requests; their answers are compared and dropped."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Every endpoint that is in service. Replaced as a whole, so that a reader sees one moment."""

    endpoints: dict[EndpointName, EndpointRoute]
    stands_by: bool = False
    """Another server over the same database acts: nothing runs here."""
