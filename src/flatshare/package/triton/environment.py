"""EXECUTION_ENV_PATH: a packed environment (conda-pack, venv-pack) that brings its own Python, unpacked once per archive and machine.

Unlike a model's archive it holds links, so it is unpacked by tarfile with the filter that keeps everything below its folder.
"""

import shutil
import tarfile
from pathlib import Path

from flatshare.core.errors import BadPackage, UnsafeArchive
from flatshare.core.ids import Digest
from flatshare.core.settings import StoreLimits
from flatshare.core.sizes import format_size
from flatshare.store.packages import PackageArea

PARAMETER = "EXECUTION_ENV_PATH"
_HERE = "$$TRITON_MODEL_DIRECTORY"
_MAX_FILES = 200_000  # a conda environment with torch has 30,000


def environment_file(model: Path, stated: str) -> Path | None:
    """The archive that the parameter names; it has to lie in the model's own folder. Raises BadPackage."""
    if not stated:
        return None
    if not stated.startswith(_HERE):
        raise BadPackage(f"model '{model.name}': {PARAMETER} is {stated!r}: it must begin with {_HERE}, since only the package is there")
    path = (model / stated.removeprefix(_HERE).lstrip("/")).resolve()
    if not path.is_relative_to(model.resolve()) or not path.is_file():
        raise BadPackage(f"model '{model.name}': {PARAMETER} names {stated!r}, which is no file of the model")
    return path


def unpack_environment(archive: Path, digest: Digest, area: PackageArea, limits: StoreLimits) -> None:
    """After this, the environment is there. Raises UnsafeArchive or BadPackage."""
    target = area.environments_dir / digest
    if target.is_dir():
        return
    folder = target.with_suffix(".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _extract(archive, folder, limits)
        if not (folder / "bin" / "python").is_file():
            raise BadPackage(f"{archive.name} has no bin/python: pack an environment with conda-pack")
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: Path, folder: Path, limits: StoreLimits) -> None:
    left_bytes, left_files = limits.max_unpacked_bytes, _MAX_FILES
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                left_bytes, left_files = left_bytes - member.size, left_files - 1
                if left_bytes < 0 or left_files < 0:
                    raise UnsafeArchive(
                        f"{archive.name} unpacks to more than {format_size(limits.max_unpacked_bytes)} or {_MAX_FILES} files"
                    )
                packed.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise UnsafeArchive(f"{archive.name} would escape its folder: {error}") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadPackage(f"{archive.name} cannot be unpacked: {error}") from error
