"""`flatshare keys` as an operator meets it."""

import re
from pathlib import Path

import orjson
import pytest

from flatshare.security.keys import KeyFile
from tests.cli.conftest import Flatshare


def test_a_secret_is_shown_once_in_a_form_that_a_shell_takes(flatshare: Flatshare, tmp_path: Path) -> None:
    made = flatshare("keys", "create", "acme", "--target-model", "acme/*", "--endpoint", "e")
    assert made.status == 0
    [(key_id, secret)] = re.findall(r"export AWS_ACCESS_KEY_ID=(\w+)\nexport AWS_SECRET_ACCESS_KEY=([\w-]+)\n", made.out)
    [key] = KeyFile(tmp_path / "data/keys.json").read().values()
    assert (key.principal.key_id, key.secret) == (key_id, secret)
    for command in (("keys", "list"), ("keys", "show", key_id), ("keys", "list", "--json"), ("keys", "show", key_id, "--json")):
        run = flatshare(*command)
        assert run.status == 0
        assert key_id in run.out
        assert "acme/*" in run.out
        assert secret not in run.out + run.err
    assert "sagemaker:InvokeEndpoint on e for acme/*" in flatshare("keys", "list").said


def test_as_json_everything_is_told(flatshare: Flatshare) -> None:
    made = flatshare("keys", "create", "operator", "--admin", "--json").json
    assert made["bearer_token"] == f"{made['id']}.{made['secret']}"
    assert made["grants"] == [{"actions": ["*"], "endpoints": ["*"], "target_models": ["*"]}]
    assert flatshare("keys", "revoke", made["id"], "--json").json == {"revoked": made["id"], "name": "operator"}
    assert flatshare("keys", "list", "--json").json == []


def test_a_policy_may_hold_several_grants(flatshare: Flatshare, tmp_path: Path) -> None:
    grants = [
        {"actions": ["sagemaker:InvokeEndpoint"], "endpoints": ["e"], "target_models": ["acme/*"]},
        {"actions": ["flatshare:*"], "endpoints": ["*"], "target_models": ["*"]},
    ]
    (tmp_path / "policy.json").write_bytes(orjson.dumps(grants))
    assert flatshare("keys", "create", "acme", "--policy", "policy.json", "--json").json["grants"] == grants


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "say what the key may do"),
        (("--admin", "--endpoint", "e"), "say what the key may do"),
        (("--admin", "--policy", "policy.json"), "say what the key may do"),
        (("--policy", "policy.json"), "not JSON"),
        (("--target-model", ""), "patterns of 1 to"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(flatshare: Flatshare, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    (tmp_path / "policy.json").write_text("{")
    run = flatshare("keys", "create", "acme", *options)
    assert run.status != 0
    assert words in run.said
    assert flatshare("keys", "list", "--json").json == []


@pytest.mark.parametrize("command", ["show", "revoke"])
def test_a_key_that_is_not_there_is_named(flatshare: Flatshare, command: str) -> None:
    run = flatshare("keys", command, "FSKANOBODY")
    assert run.status == 1
    assert "no access key FSKANOBODY" in run.said


def test_keys_that_others_may_read_are_refused(flatshare: Flatshare, tmp_path: Path) -> None:
    flatshare("keys", "create", "acme", "--admin")
    (tmp_path / "data/keys.json").chmod(0o644)
    run = flatshare("keys", "list")
    assert run.status == 1
    assert "chmod 600" in run.said


def test_making_and_revoking_is_in_the_audit_log_without_the_secret(flatshare: Flatshare, tmp_path: Path) -> None:
    made = flatshare("keys", "create", "acme", "--admin", "--json").json
    flatshare("keys", "revoke", made["id"])
    text = (tmp_path / "data/audit/changes.jsonl").read_text()
    lines = [orjson.loads(line) for line in text.splitlines()]
    assert [line["action"] for line in lines] == ["flatshare:CreateAccessKey", "flatshare:DeleteAccessKey"]
    assert all(f"access-key/{made['id']}" in line["resources"] for line in lines)
    assert made["secret"] not in text
