"""The arrows between packages, and the sizes of modules and functions: docs and review cannot keep them, a test can."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flatshare

TOP = Path(flatshare.__file__).parent
ALL = {path.stem for path in TOP.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} - {"__init__"}
_BASE = {"core", "wire", "telemetry"}

# A module at the top, such as build, is a package of one file here. A package may always import itself and `flatshare`.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "policy": {"core"},
    "wire": {"core"},
    "telemetry": {"core", "wire"},
    "security": {*_BASE, "policy"},
    "serving": _BASE,
    "client": _BASE,
    "store": _BASE,
    "package": {*_BASE, "store"},
    "gateway": {*_BASE, "policy", "security", "serving", "client"},
    "pyworker": set(),  # runs in other processes, perhaps of another Python: the standard library and numpy
    "instance": {*_BASE, "policy", "serving", "store", "package", "pyworker"},
    "control": {*_BASE, "policy", "client"},
    "planner": {*_BASE, "policy"},
    "dashboard": {*_BASE},
    "release": {*_BASE, "policy", "client", "store", "package"},
    "bench": ALL - {"gateway", "control", "build", "cli"},
    "build": ALL - {"cli", "bench"},
    "cli": ALL,
    "__main__": {"cli"},
}
_PURE = {"policy", "wire"}
_WORLDLY = {"time", "os", "socket", "pathlib", "random", "subprocess", "asyncio"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".")[1] if "." in self.name else ""


def _modules() -> dict[str, Module]:
    found = {}
    for path in sorted(TOP.rglob("*.py")):
        name = ".".join(("flatshare", *path.relative_to(TOP).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = Module(name, path, ast.parse(path.read_text()))
    return found


MODULES = _modules()


def _imports(module: Module) -> Iterator[str]:
    """Every name that is imported, those in functions and in type hints too; of ours, the module that it comes from."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} has a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def _packages_imported(module: Module) -> set[str]:
    ours = {name.split(".")[1] for name in _imports(module) if name.startswith("flatshare.")}
    lazy = {text.split(".")[1] for text in _named_modules(module)}  # the command line names its commands in a table
    return (ours | lazy) - {module.package}


def _named_modules(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES and "." in node.value:
            yield node.value


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_along_the_arrows(name: str) -> None:
    module = MODULES[name]
    if module.package:
        forbidden = _packages_imported(module) - ALLOWED[module.package]
        assert not forbidden, f"{name} imports {', '.join(sorted(forbidden))}"


def test_every_package_has_its_arrows() -> None:
    assert not ALL - set(ALLOWED)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {name: {found for found in _imports(module) if found in MODULES and found != name} for name, module in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", [name for name, module in MODULES.items() if module.package in _PURE])
def test_policy_and_wire_know_no_clock_no_disk_no_network_and_no_chance(name: str) -> None:
    assert not {found.split(".")[0] for found in _imports(MODULES[name])} & _WORLDLY


@pytest.mark.parametrize("name", MODULES)
def test_a_module_fits_in_one_reading(name: str) -> None:
    assert len(MODULES[name].path.read_text().splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("name", MODULES)
def test_a_function_fits_on_one_screen(name: str) -> None:
    functions = (node for node in ast.walk(MODULES[name].tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {f.name: size for f in functions if (size := (f.end_lineno or 0) - f.lineno + 1) > MAX_FUNCTION_LINES}
    assert not long
