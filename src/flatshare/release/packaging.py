"""From a request to a package that a real instance has answered with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flatshare.core import naming
from flatshare.core.errors import BadInput, FlatshareError
from flatshare.package.assembly import Ingredients, PlannedPart, assemble
from flatshare.package.build import CodeUsed, Form, Origin, Package, build_package
from flatshare.package.layout import Layout, read_layout, values_of
from flatshare.package.packs import TRUNKS, Trunk, write_trunk
from flatshare.release.trial import Trial
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
    trunk: Path | None = None
    """A checkpoint folder, for packages in packs: what has not changed since is referred to."""


def make_package(request: PackageRequest) -> Package:
    """Raises BadLayout, BadPackage, UnknownTarget, DiskFull; then nothing was published."""
    [made] = make_packages([request])
    if isinstance(made, FlatshareError):
        raise made
    return made


def make_packages(requests: Sequence[PackageRequest]) -> Iterator[Package | FlatshareError]:
    """Each as it is done, or why it was not published; the others go on. One instance tries them all."""
    with ExitStack() as stack:
        bench = None
        trunks: dict[tuple[Path, Path], Trunk] = {}
        for request in requests:
            try:
                plan = _planned(request)
                if bench is None:  # it starts while the first package is written
                    bench = stack.enter_context(Trial(plan.size_bytes))
                yield build_package(plan.parts, plan.origin, plan.out, Form(request.form), bench.answers, _trunk(request, plan.out, trunks))
            except FlatshareError as error:
                yield error


@dataclass(frozen=True, slots=True)
class _Plan:
    parts: tuple[PlannedPart, ...]
    origin: Origin
    out: Path

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for part in self.parts for file in part.files)


def _planned(request: PackageRequest) -> _Plan:
    """Everything that can be found out without writing."""
    tenant, _, name = request.model.partition("/")
    model = naming.model_name(tenant, name)
    layout = read_layout(request.layout)
    values = values_of(layout, request.settings)
    code = _code(layout, request)
    if request.trunk is not None and request.form != Form.PACKS:
        raise BadInput(f"--trunk goes with --form packs: artifacts as {request.form} hold all their weights")
    parts = assemble(layout, Ingredients(request.sources, values, code.files if code else None))
    used = CodeUsed(code.version.name, code.version.version, code.version.sha256) if code else None
    origin = Origin(model, layout.kind, layout.layout, layout.digest, values, layout.sample.body if layout.sample else {}, used)
    return _Plan(parts, origin, request.out or Path(f"{tenant}-{name}.package"))


def _trunk(request: PackageRequest, out: Path, known: dict[tuple[Path, Path], Trunk]) -> Trunk | None:
    """The trunk beside the package, written and hashed once for all packages."""
    if request.trunk is None:
        return None
    key = (request.trunk, out.parent)
    if key not in known:
        files = sorted(request.trunk.glob("*.safetensors"))
        if not files:
            raise BadInput(f"'{request.trunk}' has no safetensors files: --trunk names the checkpoint folder that others were trained from")
        known[key] = write_trunk(files, out.parent / TRUNKS)
    return known[key]


def _code(layout: Layout, request: PackageRequest) -> Code | None:
    if request.code is None:
        return None
    if not layout.needs_code:
        raise BadInput(f"layout {layout.layout} takes no inference code: leave out --code")
    named, _, digest = request.code.partition("#")
    name, _, version = named.partition("@")
    return CodeShelf(request.code_store).get(name, version or LATEST, pinned_sha256=digest or None)
