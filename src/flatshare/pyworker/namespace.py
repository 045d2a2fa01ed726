"""Modules of one model, which no other model of the process sees.

Two models of one code version import the same names (`model`, `helper`), and each must get modules of its own: a module-level variable
is a tenant's data. So while a model's code runs, `sys.modules` holds its own modules and nobody else's, and its modules carry an
`__import__` that brings this about for imports in threads too.

As on Triton, `model.py` of version 1 is the module `1.model`, siblings are found beside it and one folder up, and installed packages win.
"""

import builtins
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import invalidate_caches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any


class Namespaces:
    """The one switch of this process: whose modules `sys.modules` holds now."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.current: Namespace | None = None
        sys.meta_path.insert(0, _Finder(self, is_for_parts=True))
        sys.meta_path.append(_Finder(self, is_for_parts=False))

    def new(self, folders: Sequence[str], given: Mapping[str, ModuleType]) -> "Namespace":
        """An empty namespace over the model's folders, with some modules put in from the start."""
        return Namespace(self, folders, given)


class Namespace:
    """Made by `Namespaces.new`."""

    def __init__(self, switch: Namespaces, folders: Sequence[str], given: Mapping[str, ModuleType]) -> None:
        self._switch = switch
        self._folders = list(folders)
        self._modules: dict[str, ModuleType] = dict(given)
        self._names = set(given)
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, this model's modules are importable; what it imports from its own folders stays its own."""
        with self._switch.lock:
            before = self._switch.current
            self._change(before, self)
        try:
            yield
        finally:
            with self._switch.lock:
                self._change(self, before)

    def load(self, name: str) -> ModuleType:
        """Import a module of this model afresh."""
        invalidate_caches()
        with self._switch.lock, self.active():
            builtins.__import__(name)
            return sys.modules[name]

    def find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """For the finder: a module that lies in this model's folders."""
        spec = PathFinder.find_spec(name, self._folders if path is None else path)
        if spec is None:
            return None
        self._names.add(name)
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self)
        return spec

    def owns(self, path: Sequence[str] | None) -> bool:
        """Whether a package's path lies in this model's folders."""
        return path is None or any(entry.startswith(folder) for entry in path for folder in self._folders)

    def clear(self) -> None:
        """Let go of every module, so that what they hold can be freed."""
        for module in self._modules.values():
            vars(module).clear()
        self._modules.clear()
        self._names.clear()

    def _import(self, name: str, *args: Any, **kwargs: Any) -> ModuleType:
        """The `__import__` of this model's modules. One at a time: whoever imports needs `sys.modules` to himself."""
        with self._switch.lock, self.active():
            return builtins.__import__(name, *args, **kwargs)

    def _change(self, before: "Namespace | None", after: "Namespace | None") -> None:
        if before is not after:
            if before is not None:
                before._take_out()
            if after is not None:
                sys.modules.update(after._modules)
        self._switch.current = after

    def _take_out(self) -> None:
        for name in self._names:
            module = sys.modules.pop(name, None)
            if module is not None:
                self._modules[name] = module


class _Finder(MetaPathFinder):
    """For whole modules the last to be asked, so that installed packages win, as on Triton; for parts of a model's own package the first,
    since everybody finds those.
    """

    def __init__(self, switch: Namespaces, *, is_for_parts: bool) -> None:
        self._switch = switch
        self._is_for_parts = is_for_parts

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        namespace = self._switch.current
        if namespace is None or (path is not None) != self._is_for_parts or not namespace.owns(path):
            return None
        return namespace.find(fullname, path)


class _Loader(SourceFileLoader):
    """Gives a module the `__import__` of its model before its first line runs."""

    def __init__(self, name: str, path: str, namespace: Namespace) -> None:
        super().__init__(name, path)
        self._namespace = namespace

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._namespace.builtins
        super().exec_module(module)
