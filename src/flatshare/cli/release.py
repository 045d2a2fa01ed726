"""`flatshare release`: versions and aliases; and what `flatshare deploy` does with packages."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, errors, json_option, print_json, url_option
from flatshare.core.naming import LIVE
from flatshare.core.sizes import format_size


def site_of(options: dict[str, Any]) -> Any:
    """The place that `--target`, `--url` and `--prefix` name."""
    from flatshare.release.site import aws_site, flatshare_site

    if options["target"] == "aws":
        return aws_site(options["prefix"], role=options.get("role"), image=options.get("image"), instance_type=options.get("instance_type"))
    return flatshare_site(options["url"], options["prefix"])


def deploy_packages(folders: tuple[Path, ...], options: dict[str, Any]) -> None:
    """`flatshare deploy PACKAGE…` and `--batch`."""
    from flatshare.package.build import read_package
    from flatshare.release.batch import read_batch, require_distinct

    packages = [read_package(folder) for folder in folders] if folders else read_batch(options["batch"])
    require_distinct(packages)
    site, wish = site_of(options), _wish(options)
    if options["dry_run"]:
        _show_differences(site, packages, wish, as_json=options["as_json"])
        return
    done = _deployed(site, packages, wish, is_quiet=options["as_json"])
    if options["as_json"]:
        print_json([{"model": one.model, "error": one.error, **(asdict(one.deployed) if one.deployed else {})} for one in done])
    else:
        _show_summary(done)
    if any(one.error for one in done):
        raise SystemExit(1)


def _wish(options: dict[str, Any]) -> Any:
    from flatshare.release.deploying import Wish

    share = options["canary"]
    return Wish(
        fleet=options["fleet"],
        alias=None if options["hold"] else LIVE,
        canary_share=None if share is None else share / 100,
        why=options["why"],
    )


def _deployed(site: Any, packages: list[Any], wish: Any, *, is_quiet: bool) -> list[Any]:
    from rich.progress import track

    from flatshare.release.batch import deploy_all

    results = deploy_all(site, packages, wish)
    if is_quiet or len(packages) == 1 or not errors.is_terminal:
        return list(results)
    return list(track(results, "deploying", total=len(packages), console=errors))


def _show_summary(done: list[Any]) -> None:
    for one in done[:50]:
        if one.deployed is None:
            console.print(f"  {one.model}: [red]{escape(one.error)}[/]")
        else:
            sent = f"{format_size(one.deployed.sent_bytes)} sent" if one.deployed.sent_bytes else "was there already"
            console.print(
                f"  {one.model}@{one.deployed.version}: {sent}, answered in {one.deployed.first_answer_ms:.0f} ms", highlight=False
            )
    if len(done) > 1:
        failed = [one for one in done if one.error]
        for one in failed[:20] if len(done) > 50 else []:
            console.print(f"  {one.model}: [red]{escape(one.error)}[/]")
        console.print(f"{len(done) - len(failed)} of {len(done)} deployed")


def _show_differences(site: Any, packages: list[Any], wish: Any, *, as_json: bool) -> None:
    from flatshare.release.deploying import difference

    found = [difference(site, package, wish) for package in packages]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    for one in found:
        if one.is_nothing:
            console.print(f"{one.model}@{one.version}: nothing to do")
            continue
        steps = [f"create endpoint {one.endpoint} over {one.prefix}"] if one.is_new_endpoint else []
        steps += [f"begin version {one.version}"] if one.is_new_version else []
        steps += [f"send {format_size(one.send_bytes)}"] if one.send_bytes else []
        was = "" if one.alias_from is None else f" (now {one.alias_from})"
        steps += [f"{LIVE} → {one.alias_to}{was}"] if one.alias_to is not None else []
        console.print(f"{one.model}@{one.version}: would {escape('; '.join(steps))}", highlight=False, soft_wrap=True)


def place_options(command: Any) -> Any:
    """`--target`, `--prefix`, `--url`."""
    target = click.option("--target", default="flatshare", show_default=True, type=click.Choice(["flatshare", "aws"]), help="Where.")
    prefix = click.option("--prefix", help="Folder above the endpoints' own, such as s3://BUCKET/models/. Needed on AWS.")
    return target(prefix(url_option(json_option(command))))


@click.group(short_help="Versions, aliases, canaries.")
def release() -> None:
    """Move callers between the versions of a model, and look back. Calls under way are never broken.

    \b
    Examples:
      flatshare release list
      flatshare release canary acme/intent 8 5
      flatshare release rollback acme/intent --why "wrong labels"
    """


@release.command(name="list")
@place_options
def list_releases(as_json: bool, **options: Any) -> None:
    """List models with their versions and aliases.

    \b
    Example:
      flatshare release list
    """
    found = site_of(options).book.all()
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    table = Table("model", "kind", "versions", "aliases")
    for releases in found:
        versions = ", ".join(f"{v.number}" + ("" if v.state == "ready" else f" ({v.state.value})") for v in releases.versions)
        table.add_row(releases.model, releases.kind, versions, ", ".join(f"{n} → {_pointing(a)}" for n, a in releases.aliases.items()))
    console.print(table)


@release.command()
@click.argument("model")
@place_options
def history(model: str, as_json: bool, **options: Any) -> None:
    """Show who did what to a model's versions, when, and why.

    \b
    Example:
      flatshare release history acme/intent
    """
    found = site_of(options).book.find(model)
    events = found.history if found else ()
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(events))
        return
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_s))
        why = f": {event.why}" if event.why else ""
        console.print(escape(f"{when}  {event.who}  {event.what}{why}"), highlight=False, soft_wrap=True)


@release.command()
@click.argument("model")
@click.argument("version", type=int)
@click.option("--alias", default=LIVE, show_default=True)
@click.option("--why", default="", help="For the history.")
@place_options
def promote(model: str, version: int, alias: str, **options: Any) -> None:
    """Let an alias stand for a version; ends a canary.

    \b
    Example:
      flatshare release promote acme/intent 8
    """
    from flatshare.core.release import Promote

    _change(model, Promote(version, alias), alias, options)


@release.command()
@click.argument("model")
@click.option("--alias", default=LIVE, show_default=True)
@click.option("--why", default="", help="For the history.")
@place_options
def rollback(model: str, alias: str, **options: Any) -> None:
    """End the canary; without one, go back to the version before.

    \b
    Example:
      flatshare release rollback acme/intent --why "wrong labels"
    """
    from flatshare.core.release import RollBack

    _change(model, RollBack(alias), alias, options)


@release.command()
@click.argument("model")
@click.argument("version", type=int)
@click.argument("percent", type=click.FloatRange(0, 100, min_open=True, max_open=True))
@click.option("--alias", default=LIVE, show_default=True)
@click.option("--max-more-errors", default=5.0, show_default=True, type=click.FloatRange(0, 100), help="Percent of calls, beyond the old.")
@click.option("--max-slowdown", default=2.0, show_default=True, type=click.FloatRange(1), help="Times the old version's mean time.")
@click.option("--max-disagreement", type=click.FloatRange(0, 100), help="Percent of answers that may differ. Default: not compared.")
@click.option("--min-calls", default=20, show_default=True, type=click.IntRange(1), help="Before it is judged.")
@click.option("--why", default="", help="For the history.")
@place_options
def canary(model: str, version: int, percent: float, alias: str, **options: Any) -> None:
    """Let a version answer some of an alias's calls. The server takes the way back by itself if a limit is passed.

    \b
    Example:
      flatshare release canary acme/intent 8 5 --max-disagreement 10
    """
    from flatshare.core.release import CanaryLimits, StartCanary

    differ = options["max_disagreement"]
    limits = CanaryLimits(
        min_calls=options["min_calls"],
        max_more_errors=options["max_more_errors"] / 100,
        max_slowdown=options["max_slowdown"],
        max_disagreement=None if differ is None else differ / 100,
    )
    _change(model, StartCanary(version, percent / 100, alias, limits), alias, options)


@release.command()
@click.argument("model")
@click.argument("version", type=int)
@click.option("--why", default="", help="For the history.")
@place_options
def retire(model: str, version: int, **options: Any) -> None:
    """Give up a version that no alias stands for, and remove its artifacts.

    \b
    Example:
      flatshare release retire acme/intent 6
    """
    from flatshare.core.release import Retire
    from flatshare.release.retiring import remove_artifacts

    site = site_of(options)
    releases = site.book.change(model, Retire(version), why=options["why"])
    remove_artifacts(site, releases, version)
    _show(releases, LIVE, as_json=options["as_json"])


def _change(model: str, change: Any, alias: str, options: dict[str, Any]) -> None:
    _show(site_of(options).book.change(model, change, why=options["why"]), alias, as_json=options["as_json"])


def _show(releases: Any, alias: str, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(releases))
    elif alias in releases.aliases:
        console.print(f"{releases.model}@{alias} → {_pointing(releases.aliases[alias])}", highlight=False, soft_wrap=True)


def _pointing(alias: Any) -> str:
    return f"{alias.version}" + (f", {alias.canary.share:.1%} to {alias.canary.version}" if alias.canary else "")
