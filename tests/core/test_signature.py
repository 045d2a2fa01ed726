"""A call is held against what its model takes and gives."""

import numpy as np
import pytest

from flatshare.core.call import InferCall
from flatshare.core.errors import BadInput
from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.core.tensor import Tensor

SIGNATURE = Signature(
    Task.TENSORS,
    "python",
    (TensorInfo("x", "FP32", (-1, 3)), TensorInfo("scale", "FP32", (1,), is_optional=True)),
    (TensorInfo("y", "FP32", (-1, 3)),),
)
X = Tensor.of("x", np.zeros((2, 3), np.float32))


def call(*tensors: Tensor, wanted: tuple[str, ...] = ()) -> InferCall:
    return InferCall({tensor.name: tensor for tensor in tensors}, wanted=wanted)


def test_what_fits_is_taken_with_or_without_the_optional_input() -> None:
    SIGNATURE.require(call(X))
    SIGNATURE.require(call(X, Tensor.of("scale", np.ones(1, np.float32)), wanted=("y",)))


def test_a_column_is_taken_for_a_row_of_texts() -> None:
    texts = Signature(Task.EMBEDDING, "mapped", (TensorInfo("text", "BYTES", (-1,)),), ())
    texts.require(call(Tensor("text", "BYTES", np.array([[b"a"], [b"b"]], object))))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (call(), "input x FP32 [-1, 3] is missing"),
        (call(Tensor.of("z", X.data)), "no input 'z' FP32 [2, 3]: it takes x FP32 [-1, 3], scale FP32 [1]"),
        (call(Tensor.of("x", X.data.astype(np.float64))), "no input 'x' FP64"),
        (call(Tensor.of("x", X.data.T)), "no input 'x' FP32 [3, 2]"),
        (call(Tensor.of("x", X.data[0])), "no input 'x' FP32 [3]"),
        (call(X, wanted=("z",)), "no output 'z': it gives y FP32 [-1, 3]"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(asked: InferCall, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        SIGNATURE.require(asked)
    assert sentence in str(caught.value)
