"""Keys by the command line, on the suite's own key and on those that it makes."""

from __future__ import annotations

import json

from lorauter_suite.suite import Addresses
from tests.e2e.conftest import Command


def test_key_is_made_used_replaced_and_revoked_by_commands(lorauter: Command, addresses: Addresses) -> None:
    made = lorauter("key", "create", "a product", "--scope", "read", "--expires-in", "90d").stdout.strip()
    key = made.split("_")[1]
    who = json.loads(lorauter("whoami", "--json", LORAUTER_API_KEY=made).stdout)
    assert (who["key_id"], who["tenant"], who["scopes"]) == (key, "default", ["read"])
    assert "demo" in lorauter("pool", "list", LORAUTER_API_KEY=made).stdout
    refused = lorauter("key", "list", status=1, LORAUTER_API_KEY=made)
    assert "SCOPE_MISSING" in refused.stderr
    new = lorauter("key", "rotate", key, "--overlap", "0s").stdout.strip()
    assert "KEY_EXPIRED" in lorauter("whoami", status=1, LORAUTER_API_KEY=made).stderr
    assert "read" in lorauter("whoami", LORAUTER_API_KEY=new).stdout
    lorauter("key", "revoke", new.split("_")[1])
    assert "KEY_REVOKED" in lorauter("pool", "list", status=1, LORAUTER_API_KEY=new).stderr
    listed = lorauter("key", "list").stdout
    assert "revoked" in listed
    assert "expired" in listed
    assert "KEY_MISSING" in lorauter("pool", "list", status=1, LORAUTER_API_KEY="").stderr
    written = json.loads(lorauter("audit", "--json", "--limit", "3").stdout)
    assert [entry["method"] for entry in written] == ["RevokeApiKey", "RotateApiKey", "CreateApiKey"]
    assert {entry["key_id"] for entry in written} == {addresses.api_key.split("_")[1]}
    printed = listed + json.dumps(written)
    assert not any(secret.split("_", 2)[2] in printed for secret in (made, new))


def test_new_key_is_one_that_nobody_knows_yet(lorauter: Command) -> None:
    key = lorauter("key", "new").stdout.strip()
    assert "KEY_INVALID" in lorauter("whoami", status=1, LORAUTER_API_KEY=key).stderr
