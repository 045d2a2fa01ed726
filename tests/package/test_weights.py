"""Safetensors: files that lie are refused, files that the real library writes are read back exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatshare.core.errors import BadPackage
from flatshare.package.weights import WeightsFile


def packed(header: object, data: bytes = b"", *, header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else orjson.dumps(header)
    return (len(text) if header_bytes is None else header_bytes).to_bytes(8, "little") + text + data


def tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "empty file": (b"", "at least 8"),
    "shorter than the length": (b"\x01\x02", "at least 8"),
    "header larger than the file": (packed({}, header_bytes=1_000), "claims a header"),
    "header of 2^63 bytes": (packed({}, header_bytes=2**63), "claims a header"),
    "no header": (packed(b""), "not valid JSON"),
    "not JSON": (packed(b"{"), "not valid JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not valid JSON"),
    "deeply nested": (packed(b"[" * 100_000), "not valid JSON"),
    "a list": (packed([]), "not an object"),
    "a tensor that is a number": (packed({"a": 1}), "lacks dtype"),
    "a tensor that is a list": (packed({"a": []}), "lacks dtype"),
    "no dtype": (packed({"a": {"shape": [], "data_offsets": [0, 4]}}, bytes(4)), "lacks dtype"),
    "no shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "lacks dtype"),
    "three offsets": (packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(8)), "lacks dtype"),
    "offsets that are text": (packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4)), "unusable"),
    "unknown dtype": (packed({"a": tensor([1], 0, 4, "F33")}, bytes(4)), "unusable"),
    "dtype that is a list": (packed({"a": tensor([1], 0, 4, ["F32"])}, bytes(4)), "unusable"),
    "dtype that is an object": (packed({"a": tensor([1], 0, 4, {})}, bytes(4)), "unusable"),
    "shape that is text": (packed({"a": tensor("1", 0, 4)}, bytes(4)), "unusable"),
    "negative size": (packed({"a": tensor([-1, -1], 0, 4)}, bytes(4)), "unusable"),
    "negative offset": (packed({"a": tensor([1], -4, 0)}, bytes(4)), "unusable"),
    "bool as size": (packed({"a": tensor([True], 0, 4)}, bytes(4)), "unusable"),
    "bool as offset": (packed({"a": tensor([1], False, 4)}, bytes(4)), "unusable"),
    "float as size": (packed({"a": tensor([1.0], 0, 4)}, bytes(4)), "unusable"),
    "size beyond 64 bits": (packed(b'{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}', bytes(4)), "unusable"),
    "rank 9": (packed({"a": tensor([1] * 9, 0, 4)}, bytes(4)), "unusable"),
    "rank 100,000": (packed({"a": tensor([2**62] * 100_000, 0, 4)}, bytes(4)), "unusable"),
    "size and offsets disagree": (packed({"a": tensor([2], 0, 4)}, bytes(4)), "lies about its size"),
    "end before begin": (packed({"a": tensor([1], 8, 4)}, bytes(8)), "lies about its size"),
    "overlap": (packed({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "overlaps"),
    "the same bytes twice": (packed({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(4)), "overlaps"),
    "hole": (packed({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)), "leaves a hole"),
    "hole at the beginning": (packed({"a": tensor([1], 4, 8)}, bytes(8)), "leaves a hole"),
    "out of range": (packed({"a": tensor([4], 0, 16)}, bytes(8)), "truncated"),
    "truncated by a byte": (packed({"a": tensor([2], 0, 8)}, bytes(7)), "truncated"),
    "bytes after the last tensor": (packed({"a": tensor([1], 0, 4)}, bytes(5)), "longer than its tensors"),
    "data without a tensor": (packed({}, bytes(1)), "longer than its tensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_with_a_sentence(tmp_path: Path, lie: str) -> None:
    content, sentence = LIES[lie]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadPackage, match=sentence) as caught:
        WeightsFile(path)
    assert "model.safetensors" in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(packed))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        WeightsFile(path)
    except BadPackage:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("dtype", "shape", "data_offsets")), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=2), JSON | st.builds(tensor, JSON, JSON, JSON, JSON), max_size=3))
def test_any_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(packed(header, bytes(8)))
    try:
        WeightsFile(path)
    except BadPackage:
        return


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
NAMES = st.text("abc.", min_size=1, max_size=6)
KINDS = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, KINDS, min_size=1, max_size=6), st.integers(0, 2**32))
def test_what_the_real_library_wrote_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[str, list[int]]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(DTYPES[dtype]) for name, (dtype, shape) in wanted.items()}
    path = tmp_path_factory.getbasetemp() / "real.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    file = WeightsFile(path)
    assert {name: (e.dtype, list(e.shape)) for name, e in file.entries.items()} == wanted
    for name, expected in tensors.items():
        values = file.float32(file.entries[name])
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected.to(torch.float32).numpy())


def test_integers_are_read_but_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"ids": torch.arange(3)}, path)
    file = WeightsFile(path)
    with pytest.raises(BadPackage, match=r"'ids'.*I64"):
        file.float32(file.entries["ids"])


def test_a_double_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.tensor([1e300], dtype=torch.float64)}, path)
    file = WeightsFile(path)
    with pytest.raises(BadPackage, match="float32 cannot hold"):
        file.float32(file.entries["w"])


def test_infinite_and_denormal_values_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = torch.tensor([float("inf"), float("-inf"), 1e-310, 6e-8], dtype=torch.float64)
    safetensors.torch.save_file({"w": values, "b": values.to(torch.bfloat16)}, path)
    file = WeightsFile(path)
    np.testing.assert_array_equal(file.float32(file.entries["w"]), values.to(torch.float32).numpy())
    np.testing.assert_array_equal(file.float32(file.entries["b"]), values.to(torch.bfloat16).to(torch.float32).numpy())
