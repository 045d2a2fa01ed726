"""Hundreds of packages in one go: a file lists them; one instance tries them all, or a few threads deploy them, each on its own."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from flatshare.client.aws import sentence_of
from flatshare.core.errors import BadInput, FlatshareError
from flatshare.package.build import Package, read_package
from flatshare.release.deploying import Deployed, Place, Wish, deploy, ready_place
from flatshare.release.packaging import PackageRequest
from flatshare.release.site import Site

T = TypeVar("T")
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
    packages = [read_package(file.parent / row.package) for row in _read(file, list[_Row], "a 'package'")]
    if not packages:
        raise BadInput(f"'{file}' lists no package")
    return require_distinct(packages)


def read_requests(file: Path, like: PackageRequest) -> list[PackageRequest]:
    """What a file of models wants packaged: `model`, and `source`, or a column for each source that the layout names.

    Everything else is as in `like`, whose `out` is the folder that they go to. Raises BadInput.
    """
    folder, requests = like.out or Path(), []
    for row in _read(file, list[dict[str, str]], "a 'model' and its 'source'"):
        if "model" not in row or len(row) < 2:
            raise BadInput(f"'{file}' cannot be used: each row names a 'model' and its 'source', and one has {', '.join(row) or 'nothing'}")
        sources = {"" if name == "source" else name: file.parent / path for name, path in row.items() if name != "model"}
        requests.append(replace(like, model=row["model"], sources=sources, out=folder / f"{row['model'].replace('/', '-')}.package"))
    twice = [model for model, count in Counter(request.model for request in requests).items() if count > 1]
    if twice or not requests:
        raise BadInput(f"'{file}' lists {f'{twice[0]} twice' if twice else 'no model'}")
    return requests


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
    places: dict[str, Place] = {}
    for package in ahead.values():
        yield _done(site, package, wish, places)
    others = [package for package in packages if package not in ahead.values()]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="deploy") as threads:
        for job in as_completed([threads.submit(_done, site, package, wish, places) for package in others]):
            yield job.result()


def _done(site: Site, package: Package, wish: Wish, places: dict[str, Place]) -> Done:
    model, kind = package.record.model, package.record.kind
    try:
        if kind not in places:
            places[kind] = ready_place(site, kind, wish)
        return Done(model, deploy(site, package, wish, places[kind]))
    except FlatshareError as error:
        return Done(model, None, str(error))
    except (ClientError, BotoCoreError) as error:
        return Done(model, None, sentence_of(error))


def _read(file: Path, kind: type[T], wanted: str) -> T:
    try:
        return msgspec.convert(_listed(file), kind)
    except (msgspec.MsgspecError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"'{file}' cannot be read: {' '.join(str(error).split())}; each row names {wanted}") from error


def _listed(file: Path) -> object:
    text = file.read_text()
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if file.suffix in {".yaml", ".yml"}:
        return yaml.safe_load(text)
    if file.suffix == ".jsonl":
        return [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
    raise BadInput(f"'{file}' must end in .csv, .yaml or .jsonl")
