"""From a request to a package that a real instance has answered with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flatshare.core import naming
from flatshare.core.errors import BadInput
from flatshare.package.assembly import Ingredients, assemble
from flatshare.package.build import CodeUsed, Form, Origin, Package, build_package
from flatshare.package.layout import Layout, read_layout, values_of
from flatshare.release.trial import try_package
from flatshare.store.code import LATEST, Code, CodeShelf


@dataclass(frozen=True, slots=True)
class PackageRequest:
    """What somebody wants packaged."""

    model: str
    layout: str
    sources: Mapping[str, Path]
    settings: Mapping[str, str]
    code: str | None
    """NAME, NAME@VERSION or NAME@VERSION#SHA256."""
    code_store: str
    form: str = Form.FOLDER
    out: Path | None = None
    """None: TENANT-NAME.package in the current folder."""


def make_package(request: PackageRequest) -> Package:
    """Raises BadLayout, BadPackage, UnknownTarget, DiskFull; then nothing was published."""
    tenant, _, name = request.model.partition("/")
    model = naming.model_name(tenant, name)
    layout = read_layout(request.layout)
    values = values_of(layout, request.settings)
    code = _code(layout, request)
    parts = assemble(layout, Ingredients(request.sources, values, code.files if code else None))
    used = CodeUsed(code.version.name, code.version.version, code.version.sha256) if code else None
    origin = Origin(model, layout.kind, layout.layout, layout.digest, values, layout.sample.body if layout.sample else {}, used)
    return build_package(parts, origin, request.out or Path(f"{tenant}-{name}.package"), Form(request.form), try_package)


def _code(layout: Layout, request: PackageRequest) -> Code | None:
    if request.code is None:
        return None
    if not layout.needs_code:
        raise BadInput(f"layout {layout.layout} takes no inference code: leave out --code")
    named, _, digest = request.code.partition("#")
    name, _, version = named.partition("@")
    return CodeShelf(request.code_store).get(name, version or LATEST, pinned_sha256=digest or None)
