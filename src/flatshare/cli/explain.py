"""`flatshare explain`: why a model is in memory, or is not."""

import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import click
import orjson
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, json_option, print_json, url_option
from flatshare.core.sizes import format_size


@click.command(short_help="Say why a model is in memory, or is not.")
@click.argument("target")
@click.option("--endpoint", help="Its endpoint; may be left out if there is only one.")
@click.option("--variant", help="Its production variant, if there are several.")
@url_option
@json_option
def explain(target: str, endpoint: str | None, variant: str | None, url: str, as_json: bool) -> None:
    """Say why the model is here, why it was evicted or refused, what a load of it would push out, and who goes next. Changes nothing.

    \b
    Examples:
      flatshare explain acme/query
      flatshare explain acme/query --endpoint embeddings --json
    """
    said = _ask(url, {"target": target, "endpoint": endpoint, "variant": variant})
    if as_json:
        print_json(said)
        return
    console.print(_facts(said))
    if said["history"]:
        console.print(_history(said["history"]))
    if said["next_to_go"]:
        console.print(_candidates(said["next_to_go"]))


def _ask(url: str, query: dict[str, str | None]) -> dict[str, Any]:
    asked = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
    try:
        with urllib.request.urlopen(f"{url}/flatshare/explain?{asked}", timeout=40) as answer:  # noqa: S310  # the operator's own address
            said: dict[str, Any] = orjson.loads(answer.read())
            return said
    except urllib.error.HTTPError as error:
        fields = orjson.loads(error.read() or b"{}")
        raise click.ClickException(str(fields.get("Message") or fields.get("error") or error)) from error
    except (OSError, orjson.JSONDecodeError) as error:
        raise click.ClickException(f"no flatshare server answers at {url} ({error}): start one with 'flatshare serve'") from error


def _facts(said: dict[str, Any]) -> Table:
    table = Table("", "", title=escape(said["uri"]), show_header=False)
    table.add_row("state", said["state"] + (f", idle for {said['idle_s']:.0f} s" if said["idle_s"] is not None else ""))
    table.add_row("instance", f"{said['endpoint']} / {said['variant']} / {said['instance']}")
    table.add_row("tenant", escape(said["tenant"]) + (", pinned" if said["is_pinned"] else ""))
    table.add_row("worth", f"{said['worth_ms_per_s']:.3f} ms of waiting saved per second; a load takes {said['reload_ms']:.0f} ms")
    if said["state"] == "resident":
        leaves = f"{said['rank']} models go before it" if said["rank"] is not None else "it cannot be evicted now"
        table.add_row("eviction", leaves + (f": {said['spared_because']}" if said["spared_because"] else ""))
    if said["copy_bytes"]:
        table.add_row("prepacked copy", f"{format_size(said['copy_bytes'])} of private memory, the first to be given back")
    if said["dry_run"]:
        plan = said["dry_run"]
        needs = f" (needs {'about ' if plan['is_estimate'] else ''}{format_size(plan['needs_bytes'])})" if plan["needs_bytes"] else ""
        table.add_row("a load now", f"{plan['verdict']}: {escape(plan['reason'])}{needs}")
        for victim in plan["victims"]:
            table.add_row("  would evict", escape(victim))
    if said["problem"]:
        table.add_row("cannot be loaded", escape(said["problem"]))
    return table


def _history(entries: list[dict[str, Any]]) -> Table:
    table = Table("when", "what", "why", title="what happened to it here")
    for entry in entries:
        table.add_row(time.strftime("%H:%M:%S", time.localtime(entry["at_s"])), entry["kind"], escape(entry["reason"]))
    return table


def _candidates(candidates: list[dict[str, Any]]) -> Table:
    table = Table("model", "tenant", "idle", "frees", "worth, ms/s", title="who would leave next, if room were needed")
    for one in candidates:
        worth = f"{one['worth_ms_per_s']:.3f}" + (" (scratch)" if one["is_scratch"] else " (prepacked copy)" if one["is_copy"] else "")
        table.add_row(escape(one["uri"]), escape(one["tenant"]), f"{one['idle_s']:.0f} s", format_size(one["frees_bytes"]), worth)
    return table
