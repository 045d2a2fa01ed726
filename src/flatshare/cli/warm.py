"""`flatshare warm` and `flatshare report`: keep models in memory, and see who had to wait because one was not."""

import time
from collections import Counter
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.cli.release import place_options, site_of


@click.command(short_help="Call every live model once.")
@click.option("--every", "every_min", type=click.FloatRange(0.1), help="Minutes; again and again until Ctrl-C. 60 is the usual keep-warm.")
@place_options
def warm(every_min: float | None, as_json: bool, **options: Any) -> None:
    """Load every model that an alias leads to, by calling it once. Makes sense where all of them fit into memory.

    Where they do not, calling all in turn evicts what callers are about to use: then leave it to the cache.

    \b
    Examples:
      flatshare warm
      flatshare warm --every 60
    """
    from flatshare.release.warming import warm as warmed

    site = site_of(options)
    while True:
        _show(list(warmed(site)), as_json=as_json)
        if every_min is None:
            return
        time.sleep(60 * every_min)


def _show(done: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([{"target": one.target, "load_ms": one.load_ms, "error": one.error} for one in done])
        return
    loaded = [one for one in done if one.load_ms > 0]
    failed = [one for one in done if one.error]
    console.print(f"{len(done)} called: {len(loaded)} had to be loaded, {len(failed)} failed", highlight=False)
    for one in failed:
        console.print(f"  {one.target}: [red]{escape(one.error)}[/]", highlight=False, soft_wrap=True)


@click.group(short_help="What happened, and what it cost.")
def report() -> None:
    """Reports of a running server, and of traffic.

    \b
    Examples:
      flatshare report cold                            which requests met a cold start, and why
      flatshare report fit traffic.csv                 which models fit a shared endpoint
    """


@report.command()
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many requests to list.")
@url_option
@json_option
def cold(last: int, url: str, as_json: bool) -> None:
    """List the latest requests that met a cold start, why, and how long each waited for it.

    \b
    Example:
      flatshare report cold --last 50
    """
    from flatshare.client.pages import read_json

    try:
        found: list[dict[str, Any]] = read_json(url, "/flatshare/status")["cold_starts"]
    except OSError as error:
        raise click.ClickException(
            f"{url} does not answer ({error}): start a server with 'flatshare serve', or say with --url where it is"
        ) from error
    if as_json:
        print_json(found[-last:])
        return
    table = Table("when", "endpoint", "target", "waited ms", "why")
    for one in found[-last:]:
        when = time.strftime("%H:%M:%S", time.localtime(one["at_s"]))
        table.add_row(when, escape(one["endpoint"]), escape(one["target"]), f"{one['waited_ms']:.0f}", one["why"])
    console.print(table)
    waited_s = sum(one["waited_ms"] for one in found) / 1e3
    most = ", ".join(f"{escape(target)} {count}" for target, count in Counter(one["target"] for one in found).most_common(3))
    console.print(f"{len(found)} cold requests waited {waited_s:.1f} s together; most: {most or 'none'}", highlight=False, soft_wrap=True)


@report.command()
@click.argument("traffic", type=click.File())
@json_option
def fit(traffic: Any, as_json: bool) -> None:
    """Say which models fit a shared endpoint, from a CSV of calls.

    Those that tolerate a first cold start, are called often and steadily, need an accelerator, and share their runtime with the others.
    Columns: model, at_s (in seconds); if you can say it, cold_ok and accelerator (yes or no), and runtime.

    \b
    Example:
      flatshare report fit traffic.csv
    """
    import csv
    from dataclasses import asdict

    from flatshare.policy import fit as policy

    try:
        verdicts = policy.judge(policy.grouped(list(csv.DictReader(traffic))))
    except (KeyError, ValueError) as error:
        raise click.ClickException(f"the file needs the columns model and at_s, and yes or no where that is asked: {error}") from error
    if as_json:
        print_json([asdict(verdict) | {"fits": verdict.fits} for verdict in verdicts])
        return
    table = Table("model", "fits", "tolerates cold", "steady", "accelerator", "shared runtime", "calls/day", "active hours")
    words = {True: "yes", False: "no", None: "?"}
    for one in verdicts:
        said = (one.fits, one.tolerates_cold, one.is_steady, one.needs_accelerator, one.shares_runtime)
        table.add_row(escape(one.model), *(words[value] for value in said), f"{one.calls_per_day:.0f}", f"{one.active_share:.0%}")
    console.print(table)
