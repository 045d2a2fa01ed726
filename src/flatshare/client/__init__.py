"""All that dials out: the gateway's road to an instance, the AWS clients, and the API layer: `from flatshare.client import Models`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatshare.client.async_models import AsyncModels
    from flatshare.client.models import Models

__all__ = ["AsyncModels", "Models"]
_PLACES = {"AsyncModels": "flatshare.client.async_models", "Models": "flatshare.client.models"}


def __getattr__(name: str) -> Any:
    """On use: whoever needs only the road to an instance must not carry boto3's memory."""
    if name not in _PLACES:
        raise AttributeError(f"module 'flatshare.client' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
