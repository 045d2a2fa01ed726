"""A model's code version: what decides which models may share a worker process, and what such a worker imports."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatshare.core.ids import Digest
from flatshare.core.settings import StoreLimits
from flatshare.package.triton.environment import PARAMETER, environment_file
from flatshare.package.triton.repository import is_repository, read_repository

_CODE = {".py", ".pyc", ".so", ".pyi", ".pth"}  # a .pyc beside its source is left out of packages, one without is code
_BUILT_IN = {"pytorch": ("torch",), "onnxruntime": ("onnxruntime",)}
_MAX_PARSED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ModelCode:
    """What one version of a Python model of a repository runs."""

    model: str
    version: int
    digest: Digest


def code_digest(model: Path, version: int, backend: str, environment: Digest | None) -> Digest:
    """sha256 over the code files that the model can import, by path. Models of a built-in engine have no code of their own."""
    parts = hashlib.sha256(f"{backend}\0{environment or ''}".encode())
    if backend == "python":
        for path in _code_files(model, version):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            parts.update(f"{_relative(path, model, version)}\0{content}\n".encode())
    return Digest(parts.hexdigest())


def python_code(folder: Path) -> tuple[ModelCode, ...]:
    """The code versions of an artifact's models that bring code, as an instance will know them; none if it holds no such model.

    Raises BadPackage or UnsupportedModel for a repository that could not be served.
    """
    if not is_repository(folder):
        return ()
    found = []
    for name, model in read_repository(folder, StoreLimits()).models.items():
        archive = environment_file(model.folder, model.config.parameters.get(PARAMETER, ""))
        environment = None if archive is None else Digest(_sha256(archive))
        if model.config.backend == "python" or environment is not None:  # an environment brings an interpreter, whatever the backend
            found += [ModelCode(name, v, code_digest(model.folder, v, model.config.backend, environment)) for v in model.versions]
    return tuple(found)


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
    """Those of this version, and those beside the versions; not those of other versions, nor what a package leaves out."""
    for path in sorted(model.rglob("*")):
        top, *others = path.relative_to(model).parts
        if "__pycache__" in (top, *others):
            continue
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
