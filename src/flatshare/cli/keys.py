"""`flatshare keys`: who may call a server, and what."""

import os
import time
from pathlib import Path
from typing import Any

import click
import orjson
from rich.markup import escape
from rich.table import Table

from flatshare.cli.options import console, errors, json_option, print_json
from flatshare.core.access import AccessKey, Grant
from flatshare.core.errors import BadInput, UnknownKey

_EVERYTHING = Grant(("*",))


def _data_option(command: Any) -> Any:
    path = click.Path(path_type=Path, file_okay=False)
    return click.option("--data", "data_dir", default="data", show_default=True, type=path, help="The server's data folder.")(command)


def _file(data_dir: Path) -> Any:
    from flatshare.build import KEYS_FILE
    from flatshare.security.keys import KeyFile

    return KeyFile(data_dir / KEYS_FILE)


@click.group(short_help="Access keys: create, list, show, revoke.")
def keys() -> None:
    """The access keys of a server started with --auth. A running server knows of a change within a second.

    They lie in DATA/keys.json, secrets included, since verifying a signature takes the secret itself: the file is readable by its owner
    alone, and a server refuses one that is not.

    \b
    Examples:
      flatshare keys create operator --admin
      flatshare keys create acme --endpoint embeddings --target-model 'acme/*'
    """


@keys.command()
@click.argument("name")
@click.option("--action", "actions", multiple=True, help="What it may do, such as sagemaker:Describe*. Default: sagemaker:InvokeEndpoint.")
@click.option("--endpoint", "endpoints", multiple=True, help="On which endpoints (and models and configurations, for control calls).")
@click.option("--target-model", "target_models", multiple=True, help="Which target models, such as 'acme/*'.")
@click.option("--policy", type=click.File("rb"), help="A JSON file with a list of grants, instead of the options above.")
@click.option("--admin", is_flag=True, help="Everything on everything.")
@click.option("--rate", "rate_rps", type=click.FloatRange(0, min_open=True), help="Calls a second that it may make. Default: any number.")
@_data_option
@json_option
def create(
    name: str,
    actions: tuple[str, ...],
    endpoints: tuple[str, ...],
    target_models: tuple[str, ...],
    policy: Any,
    admin: bool,
    rate_rps: float | None,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Create a key and print its secret, this once. Patterns are IAM's: * is any text, ? any one character; case counts.

    \b
    Examples:
      flatshare keys create operator --admin
      flatshare keys create acme --endpoint embeddings --target-model 'acme/*'
      flatshare keys create prometheus --action flatshare:GetMetrics --rate 1
    """
    grants = _grants(Grant(actions, endpoints, target_models), policy, is_admin=admin)
    key = _file(data_dir).create(name, grants, time.time(), rate_rps=rate_rps)
    _note(data_dir, "flatshare:CreateAccessKey", key)
    key_id = key.principal.key_id
    token = f"{key_id}.{key.secret}"
    if as_json:
        print_json({"id": key_id, "secret": key.secret, "bearer_token": token, "name": name, "grants": _as_data(grants)})
        return
    errors.print(f"[dim]the secret of {escape(name)} is shown this once; for roads that take a token: Authorization: Bearer ID.SECRET[/]")
    click.echo(f"export AWS_ACCESS_KEY_ID={key_id}\nexport AWS_SECRET_ACCESS_KEY={key.secret}")


@keys.command(name="list")
@_data_option
@json_option
def list_keys(data_dir: Path, as_json: bool) -> None:
    """List the keys, without their secrets.

    \b
    Example:
      flatshare keys list --data data
    """
    found = _file(data_dir).read()
    if as_json:
        print_json([_as_record(key) for key in found.values()])
        return
    table = Table("key", "name", "created", "may")
    for key in found.values():
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_s))
        table.add_row(key.principal.key_id, escape(key.principal.name), created, escape("\n".join(map(_sentence, key.principal.grants))))
    console.print(table)


@keys.command()
@click.argument("key_id")
@_data_option
@json_option
def show(key_id: str, data_dir: Path, as_json: bool) -> None:
    """Show what a key may do. Its secret is not shown again.

    \b
    Example:
      flatshare keys show FSKAEXAMPLEEXAMPLE00
    """
    key = _file(data_dir).read().get(key_id)
    if key is None:
        raise UnknownKey(f"there is no access key {key_id}: see flatshare keys list")
    if as_json:
        print_json(_as_record(key))
        return
    console.print(f"{key.principal.key_id}  {escape(key.principal.name)}", highlight=False)
    for grant in key.principal.grants:
        console.print(f"  {escape(_sentence(grant))}", highlight=False)
    if key.rate_rps is not None:
        console.print(f"  at most {key.rate_rps:g} calls a second", highlight=False)


@keys.command()
@click.argument("key_id")
@_data_option
@json_option
def revoke(key_id: str, data_dir: Path, as_json: bool) -> None:
    """Take a key back. Within a second a running server answers it no more; requests that were let in are answered.

    \b
    Example:
      flatshare keys revoke FSKAEXAMPLEEXAMPLE00
    """
    key = _file(data_dir).revoke(key_id)
    _note(data_dir, "flatshare:DeleteAccessKey", key)
    if as_json:
        print_json({"revoked": key_id, "name": key.principal.name})
    else:
        console.print(f"{key_id} of {escape(key.principal.name)} is revoked", highlight=False)


def _grants(given: Grant, policy: Any, *, is_admin: bool) -> tuple[Grant, ...]:
    is_given = bool(given.actions or given.endpoints or given.target_models)
    if is_given + (policy is not None) + is_admin != 1:
        raise click.UsageError("say what the key may do: --endpoint, --target-model and --action, or --policy FILE, or --admin")
    if is_admin:
        return (_EVERYTHING,)
    if policy is None:
        return (Grant(given.actions or ("sagemaker:InvokeEndpoint",), given.endpoints or ("*",), given.target_models or ("*",)),)
    from flatshare.security.keys import parse_grants

    try:
        return parse_grants(orjson.loads(policy.read()))
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the policy is not JSON: {error}") from error


def _note(data_dir: Path, action: str, key: AccessKey) -> None:
    """In the audit log, as done by whoever runs this."""
    from flatshare.build import AUDIT_DIR
    from flatshare.security.audit import AuditLog, Deed

    named = (f"access-key/{key.principal.key_id}", key.principal.name)
    AuditLog(data_dir / AUDIT_DIR).changed_now(Deed(time.time(), f"uid {os.getuid()}", "", action, named, "command line", "done", "-"))


def _sentence(grant: Grant) -> str:
    return f"{', '.join(grant.actions)} on {', '.join(grant.endpoints)} for {', '.join(grant.target_models)}"


def _as_record(key: AccessKey) -> dict[str, Any]:
    principal = key.principal
    grants = _as_data(principal.grants)
    return {"id": principal.key_id, "name": principal.name, "created_s": key.created_s, "rate_rps": key.rate_rps, "grants": grants}


def _as_data(grants: tuple[Grant, ...]) -> list[dict[str, list[str]]]:
    from flatshare.security.keys import render_grants

    return render_grants(grants)
