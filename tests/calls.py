"""Calls as tests make them."""

from flatshare.core.call import InferCall
from flatshare.core.tensor import text_tensor


def text_call(*texts: str) -> InferCall:
    return InferCall({"text": text_tensor("text", texts)})
