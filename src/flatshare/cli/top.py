"""`flatshare top`: what the fleet does now."""

import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.core.errors import BadInput
from flatshare.core.sizes import format_size


@click.command(short_help="Watch instances, memory and the cache's decisions.")
@click.option("--once", is_flag=True, help="Print once and leave.")
@click.option("--every", "every_s", default=1.0, show_default=True, help="Seconds between updates.")
@url_option
@json_option
def top(once: bool, every_s: float, url: str, as_json: bool) -> None:
    """Show every instance's ledgers, its models, and why the cache did what it did. Ctrl-C leaves.

    \b
    Examples:
      flatshare top
      flatshare top --json | jq '.instances[].balance'
    """
    if as_json:
        print_json(_status(url))
    elif once:
        console.print(_screen(_status(url)))
    else:
        with Live(_screen(_status(url)), console=console, screen=True) as live:
            try:
                while True:
                    time.sleep(every_s)
                    live.update(_screen(_status(url)))
            except KeyboardInterrupt:
                return


def _status(url: str) -> dict[str, Any]:
    from flatshare.client.pages import read_json

    try:
        return read_json(url, "/flatshare/status")
    except (OSError, BadInput) as error:
        raise click.ClickException(f"no flatshare server answers at {url} ({error}): start one with 'flatshare serve'") from error


def _screen(status: dict[str, Any]) -> Group:
    instances = [i for i in status["instances"] if "balance" in i]
    return Group(_instances(status["instances"]), _models(instances), _decisions(instances))


def _instances(instances: list[dict[str, Any]]) -> Table:
    columns = ("endpoint", "instance", "models", "private", "mapped", "budget", "in flight", "loads", "evictions", "page waits/s")
    table = Table(*columns, title="instances")
    for instance in instances:
        if "error" in instance:
            table.add_row(instance["endpoint"], instance["instance"], escape(instance["error"]))
            continue
        balance, counts = instance["balance"], instance["decision_counts"]
        sizes = (format_size(balance[name]) for name in ("measured_anonymous", "mapped", "memory_limit"))
        numbers = (str(n) for n in (instance["in_flight"], counts.get("load", 0), counts.get("evict", 0)))
        page_waits = f"{instance['signs']['major_faults_per_s']:.0f}"
        table.add_row(instance["endpoint"], instance["instance"], str(balance["models"]), *sizes, *numbers, page_waits)
    return table


def _models(instances: list[dict[str, Any]]) -> Table:
    table = Table("model", "digest", "leases", "idle", "weights", title="in memory, most recently used first")
    models = sorted((model for instance in instances for model in instance["models"]), key=lambda model: float(model["idle_s"]))
    for model in models[:15]:
        idle = f"{model['idle_s']:.0f} s"
        weights = format_size(model["mapped_bytes"]) + (f" + {format_size(model['copy_bytes'])} copy" if model["copy_bytes"] else "")
        table.add_row(escape(model["uri"]), model["digest"][:12], str(model["leases"]), idle, weights)
    return table


def _decisions(instances: list[dict[str, Any]]) -> Table:
    table = Table("when", "what", "model", "why", "ms", title="decisions")
    entries = sorted((entry for instance in instances for entry in instance["decisions"]), key=lambda entry: -float(entry["at_s"]))
    for entry in entries[:12]:
        when = time.strftime("%H:%M:%S", time.localtime(entry["at_s"]))
        table.add_row(when, entry["kind"], escape(entry["model"]), escape(entry["reason"]), f"{entry['took_ms']:.1f}")
    return table
