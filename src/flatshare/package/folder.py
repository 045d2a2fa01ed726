"""The folder of a checkpoint: JSON files of bounded size, named in every complaint."""

from pathlib import Path
from typing import Any

from flatshare.core.errors import BadInput, BadPackage
from flatshare.core.settings import StoreLimits
from flatshare.wire import json_body


class Folder:
    """One folder of a checkpoint, `prefix` being its place below the top as messages name it."""

    def __init__(self, path: Path, limits: StoreLimits, prefix: str = "") -> None:
        self.path = path
        self.limits = limits
        self._prefix = prefix

    def below(self, name: str) -> "Folder":
        """A folder in this one; "" is this one."""
        return Folder(self.path / name, self.limits, f"{self._prefix}{name}/") if name else self

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def required_path(self, name: str, hint: str) -> Path:
        if not self.has(name):
            raise BadPackage(f"{self.shown(name)} is missing: {hint}")
        return self.path / name

    def shown(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def required_json(self, name: str) -> dict[str, Any]:
        self.required_path(name, "a checkpoint directory is what save_pretrained() writes")
        return self._object(name, self.json(name))

    def optional_json(self, name: str) -> dict[str, Any]:
        """The object in the file, or an empty one if there is no such file."""
        return self._object(name, self.json(name)) if self.has(name) else {}

    def optional_list(self, name: str) -> list[Any] | None:
        if not self.has(name):
            return None
        value = self.json(name)
        if not isinstance(value, list):
            raise BadPackage(f"{self.shown(name)} is not a list")
        return value

    def json(self, name: str) -> Any:
        """Whatever the file holds. Raises BadPackage if it is too large or no JSON."""
        try:
            return json_body.parsed(self.content(name), self.shown(name))
        except BadInput as error:
            raise BadPackage(str(error)) from error

    def content(self, name: str) -> bytes:
        """The file's bytes. Raises BadPackage if they are too many."""
        path = self.path / name
        if path.stat().st_size > self.limits.max_json_bytes:
            raise BadPackage(f"{self.shown(name)} has more than {self.limits.max_json_bytes} bytes")
        return path.read_bytes()

    def _object(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadPackage(f"{self.shown(name)} is not a JSON object")
        return value
