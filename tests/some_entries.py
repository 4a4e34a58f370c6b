"""Entries as the agent makes them, for tests of those who read the ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recuse import records
from recuse.policy import Decision, Facts

SECOND = 10**9
HOST = records.Host("example.org/recuse/host/h1/1", "h1.example.org", "m1", "b1", "Debian", "1")


def some_facts(**more: Any) -> Facts:
    """Give what is known when alice logs in, but for what is said otherwise."""
    known = dict(
        user="alice", uid=1000, groups=(), service="sshd", host="h1", host_tags=frozenset(),
        source=None, claimed_source=None, ruser=None, tty=None, command=None, login_shell=None,
        tags=frozenset(), claimed_tags=frozenset(), outer=None,
    )  # fmt: skip
    return Facts(**{**known, **more})


def entry(
    index: int = 7, kind: str = "exempt", user: str = "dave", rule: str = "dave-is-exempt",
    at_ns: int = 1_700_000_000 * SECOND, origin: str = HOST.origin,
) -> bytes:  # fmt: skip
    host = replace(HOST, origin=origin)
    login = records.Login(
        "l-1", user, 1003, 1003, 4, "sshd", records.Source("192.0.2.7:40112"), "pts/0", None, 99,
        at_ns,
    )  # fmt: skip
    session = records.Session(
        "s-1", login, "command", "/dev/pts/0", "mysql -p geheim", False, "/bin/dash", 100, at_ns, 5
    )
    decision = Decision(
        verdict="exempt", rule=rule, effect="exempt", reason="patient data",
        owner="privacy@example.org", expires="2099-12-31", message=None, policy="ab" * 32,
        matched=(rule,),
        facts=some_facts(
            user=user, uid=1003, groups=(user,), host_tags=frozenset({"pci"}), source="192.0.2.7",
            tty=True, command="mysql -p geheim", login_shell=False,
        ),
    )  # fmt: skip
    builders: Any = {"exempt": records.exempt_entry, "open": records.open_entry}
    if kind == "close":
        return records.close_entry(
            host, index, at_ns, session, "record", "failed", at_ns, 0, 0, 0, None
        )
    return bytes(builders[kind](host, index, at_ns, session, decision))
