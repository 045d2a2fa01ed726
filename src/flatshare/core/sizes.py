"""Sizes as people write them: `2GiB`, `500MB`, `1048576`."""

import re

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
MIB = 2**20


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError with a sentence that shows the form."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(f"'{text}' is not a size: write it like 2GiB, 500MB or 1048576")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_size(size_bytes: float) -> str:
    """The size in the largest binary unit that leaves at least one before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
