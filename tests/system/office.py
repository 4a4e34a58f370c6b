"""A host where people ask for exemptions and others approve them, and what each of them types."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Dict, List

from accounts import RULES
from host import Host

Grant = Dict[str, Any]
Result = subprocess.CompletedProcess[str]

NAMESPACE = "recuse-grant@local"
NAMESPACES = f'namespaces="{NAMESPACE}"'
REASONS = """
[reasons.maintenance]
text.en = "maintenance of a database"
needs_ticket = "CHG-[0-9]+"
[reasons.private]
text.en = "private data on the screen"
[reasons.sealed]
text.en = "what only a security key opens"
"""
APPROVAL = """
[approvers]
leads = ["frank@example.org", "heidi@example.org", "alice@example.org"]

[[allow]]
name = "dba"
users = ["alice", "bob"]
reasons = ["maintenance"]
levels = ["metadata", "commands", "output"]
longest = "4h"
uses = 5
approvers = 2
from = ["leads"]

[[allow]]
name = "sealed"
users = ["alice"]
reasons = ["sealed"]
longest = "1h"
approvers = 1
from = ["leads"]
verification = true

[[allow]]
name = "pauses"
users = ["alice"]
reasons = ["maintenance"]
scopes = ["pause"]
longest = "1h"
approvers = 2
from = ["leads"]

[[allow]]
name = "private"
users = ["bob"]
reasons = ["private"]
longest = "1h"
approvers = 1
from = ["leads"]
local = true

[break_glass]
users = ["carol"]
longest = "1h"
review_within = "1h"
reviewers = ["leads"]
local = true
"""
APPROVERS = ("frank", "heidi")


def key_of(user: str) -> str:
    return f"/home/{user}/.ssh/id_ed25519"


def make_key(host: Host, user: str) -> None:
    """Have somebody make a key of theirs; who has no account gets one."""
    host.run(
        f"id {user} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash {user};"
        f"install -d -m 700 -o {user} -g {user} /home/{user}/.ssh", check=True,
    )  # fmt: skip
    made = by(host, user, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key_of(user))
    assert made.returncode == 0, made.stderr


def signers_line(host: Host, principal: str, key: str, *options: str) -> str:
    """Write a line of the file of approvers for a key of the host."""
    kind, body = host.read(f"{key}.pub").split()[:2]
    return f'{principal} {",".join([*options, NAMESPACES])} {kind} {body}\n'


def open_office(host: Host) -> None:
    """Set up the policy, the approval policy and approvers who have keys in their homes."""
    people = (*APPROVERS, "alice")
    for name in people:
        make_key(host, name)
    lines = [signers_line(host, f"{name}@example.org", key_of(name)) for name in people]
    host.write("/etc/recuse/approvers", "".join(lines))
    rules = RULES.replace("handles patient data", "private")
    host.write("/etc/recuse/policy.d/10-test.toml", REASONS + rules)
    host.write("/etc/recuse/approval.d/10-test.toml", APPROVAL)
    host.run("recuse", "policy", "check", check=True)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def by(host: Host, user: str, *command: str, input: str = "") -> Result:
    """Run a command as a user who is logged in nowhere."""
    home = ["env", f"HOME=/home/{user}", f"USER={user}", f"LOGNAME={user}"]
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
    return host.run(*who, *home, *command, input=input)


def request_words(*more: str) -> List[str]:
    words = ["recuse", "request", "--json", "--for", "1h", "--why", "index rebuild", *more]
    if "--reason" not in more:
        words += ["--reason", "maintenance", "--ticket", "CHG-7"]
    return words


def ask(host: Host, user: str, *more: str) -> Grant:
    ran = by(host, user, *request_words(*more))
    assert ran.returncode == 0, ran.stderr
    told: Grant = json.loads(ran.stdout)
    return told


def approve(host: Host, user: str, grant: Grant) -> Grant:
    ran = by(host, user, "recuse", "approve", grant["grant"], "--yes", "--json")
    assert ran.returncode == 0, ran.stderr
    told: Grant = json.loads(ran.stdout)
    return told


def granted(host: Host, user: str, *more: str) -> Grant:
    asked = ask(host, user, *more)
    assert approve(host, "frank", asked)["state"] == "pending"
    told = approve(host, "heidi", asked)
    assert told["state"] == "granted"
    return told


def entries(host: Host, *kinds: str) -> List[Dict[str, Any]]:
    """Read the entries of some kinds out of the bundles of the ledger itself."""
    found = []
    for file in sorted(host.path("/var/lib/recuse/ledger/tile/entries").glob("**/*")):
        data = file.read_bytes() if file.is_file() else b""
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 2], "big")
            entry = json.loads(data[at + 2 : at + 2 + size])
            if entry["metadata"]["event_code"] in kinds:
                found.append(entry)
            at += 2 + size
    return found
