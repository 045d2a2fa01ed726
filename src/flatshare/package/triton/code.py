"""A model's code version: what decides which models may share a worker process, and what such a worker imports."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from flatshare.core.ids import Digest

_CODE = {".py", ".so", ".pyi", ".pth"}
_BUILT_IN = {"pytorch": ("torch",), "onnxruntime": ("onnxruntime",)}
_MAX_PARSED_BYTES = 2**20


def code_digest(model: Path, version: int, backend: str, environment: Digest | None) -> Digest:
    """sha256 over the code files that the model can import, by path. Models of a built-in engine have no code of their own."""
    parts = hashlib.sha256(f"{backend}\0{environment or ''}".encode())
    if backend == "python":
        for path in _code_files(model, version):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            parts.update(f"{_relative(path, model, version)}\0{content}\n".encode())
    return Digest(parts.hexdigest())


def imported_packages(model: Path, version: int, backend: str) -> tuple[str, ...]:
    """Installed packages that the code names in its imports: a spare worker imports them ahead of the first model."""
    if backend != "python":
        return _BUILT_IN.get(backend, ())
    files = list(_code_files(model, version))
    own = {path.stem for path in files} | {parent.name for path in files for parent in path.parents}
    found = {name for path in files for name in _imports(path)}
    return tuple(sorted(found - own - set(sys.stdlib_module_names) - {"triton_python_backend_utils", "c_python_backend_utils"}))


def is_mapping(model: Path, version: int) -> bool:
    """Whether the code maps its weights instead of reading them into private memory."""
    return any(b"map_safetensors" in path.read_bytes() for path in _code_files(model, version) if path.suffix == ".py")


def _code_files(model: Path, version: int) -> Iterator[Path]:
    """Those of this version, and those beside the versions; not those of other versions."""
    for path in sorted(model.rglob("*")):
        top = path.relative_to(model).parts[0]
        if path.suffix in _CODE and path.is_file() and (not top.isdigit() or top == str(version)):
            yield path


def _relative(path: Path, model: Path, version: int) -> str:
    """The version's number is left out, since the same code may lie under another."""
    parts = path.relative_to(model).parts
    return "/".join(("<version>", *parts[1:]) if parts[0] == str(version) else parts)


def _imports(path: Path) -> Iterator[str]:
    if path.suffix != ".py" or path.stat().st_size > _MAX_PARSED_BYTES:
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # the load will say what is wrong with it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
