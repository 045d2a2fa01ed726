"""Hundreds of packages in one go: a file that lists them, deployed by a few threads, each on its own."""

import csv
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from flatshare.client.aws import sentence_of
from flatshare.core.errors import BadInput, FlatshareError
from flatshare.package.build import Package, read_package
from flatshare.release.deploying import Deployed, Wish, deploy
from flatshare.release.site import Site

_PARALLEL = 8


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    package: str


@dataclass(frozen=True, slots=True)
class Done:
    """One line of the summary."""

    model: str
    deployed: Deployed | None
    error: str = ""


def read_batch(file: Path) -> list[Package]:
    """The packages that a .csv (with a column `package`), .yaml or .jsonl file lists, by paths that start at the file.

    Raises BadInput for a file that cannot be read, and for two packages of one model; BadPackage for a package that is none.
    """
    packages = [read_package(file.parent / row.package) for row in _rows(file)]
    if not packages:
        raise BadInput(f"'{file}' lists no package")
    return require_distinct(packages)


def require_distinct(packages: list[Package]) -> list[Package]:
    """Raises BadInput if two are of one model: which of them were to be live?"""
    seen: dict[str, Package] = {}
    for package in packages:
        other = seen.setdefault(package.record.model, package)
        if other is not package:
            raise BadInput(f"'{other.folder}' and '{package.folder}' are both {package.record.model}: deploy one after the other")
    return packages


def deploy_all(site: Site, packages: list[Package], wish: Wish) -> Iterator[Done]:
    """As they are done. The others go on if one fails.

    The first of each kind and trunk goes ahead alone, so that endpoints are made and trunks are sent once.
    """
    ahead: dict[tuple[object, ...], Package] = {}
    for package in packages:
        ahead.setdefault((package.record.kind, *package.record.trunks), package)
    for package in ahead.values():
        yield _done(site, package, wish)
    others = [package for package in packages if package not in ahead.values()]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="deploy") as threads:
        for job in as_completed([threads.submit(_done, site, package, wish) for package in others]):
            yield job.result()


def _done(site: Site, package: Package, wish: Wish) -> Done:
    model = package.record.model
    try:
        return Done(model, deploy(site, package, wish))
    except FlatshareError as error:
        return Done(model, None, str(error))
    except (ClientError, BotoCoreError) as error:
        return Done(model, None, sentence_of(error))


def _rows(file: Path) -> list[_Row]:
    try:
        return msgspec.convert(_listed(file), list[_Row])
    except (msgspec.MsgspecError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"'{file}' cannot be read: {' '.join(str(error).split())}; each row names a 'package'") from error


def _listed(file: Path) -> object:
    text = file.read_text()
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if file.suffix in {".yaml", ".yml"}:
        return yaml.safe_load(text)
    if file.suffix == ".jsonl":
        return [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
    raise BadInput(f"'{file}' must end in .csv, .yaml or .jsonl")
