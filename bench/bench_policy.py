"""Measure how long a policy takes to load and to decide.

Usage: PYTHONPATH=agent python3 bench/bench_policy.py [RULES]

The first line is the policy that has to keep within limits: all effects, 50 roles, and a condition
in every tenth rule; with 5,000 rules it is to load in 1 s and to decide in 2 ms.  The others have
as many roles as rules, and rules of one shape each, the last ones of shapes that no index helps.
A decision is timed alone, so the clock's own cost is in it.  Loading is given in CPU time as well,
which other programs disturb less.
"""

from __future__ import annotations

import statistics
import sys
import time
from datetime import datetime, timezone
from typing import Callable, Dict, List, Optional, Sequence

from recuse.policy import Facts, Policy, decide, explain, questions
from recuse.policytoml import parse_policy

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)
ROUNDS = 300

SHAPES: Dict[str, str] = {
    "users": 'users = ["u{n}", "v{n}"]',
    "groups, service, tty": 'groups = ["g{n}"]\nservices = ["sshd"]\ntty = true',
    "roles": 'roles = ["r{n}"]\nhosts = ["*.example.org"]',
    "host globs, groups": 'groups = ["g{n}"]\nhosts = ["web{n}-*.example.org"]',
    "host names": 'hosts = ["h{n}.example.org"]',
    "sources": 'sources = ["10.{high}.{low}.0/24", "2001:db8:{n}::/48"]',
    "everybody's group": 'groups = ["staff"]\nhosts = ["h{n}-?.example.org"]',
    "all match": 'users = ["alice"]\nservices = ["sshd"]',
    "not indexed: host globs": 'hosts = ["web{n}-*.example.org"]',
    "not indexed: negations": 'users = ["!u{n}", "!alice"]\nsources = ["!10.0.0.0/8"]',
    "not indexed: commands": 'commands = ["*secret{n}*", "prog{n} *"]',
    "not indexed: conditions": "when = \"user == 'u{n}' and 'legal' in groups and not tty\"",
    "not indexed: times": 'times = [{{ days = ["sat"], from = "08:00", zone = "Europe/Berlin" }}]',
}

EFFECTS = ("exempt", "require-record", "deny", "record")
CONDITION = "when = \"user == 'u{n}' and 'legal' in groups and host is glob('db*')\""
MIXED = [
    'users = ["u{n}", "v{n}"]',
    'groups = ["g{n}"]\nservices = ["sshd"]\ntty = true',
    'hosts = ["db{n}.example.org"]\ntty = true',
    'sources = ["10.{high}.{low}.0/24", "2001:db8:{n}::/48"]',
    'roles = ["r{few}"]\nhosts = ["*.example.org"]',
    'host_tags = ["tag{n}"]\ngroups = ["staff"]',
    'users = ["w{n}"]\ncommands = ["*secret*"]',
    'groups = ["h{n}"]\nsources = ["192.0.2.0/24"]',
    'users = ["x{n}"]\ntags = ["batch"]',
    CONDITION,
]

FACTS = Facts(
    user="alice", uid=1000, groups=("alice", "staff", "g7", "docker", "adm"), service="sshd",
    host="h7.example.org", host_tags=frozenset({"production", "pci"}), source="10.0.7.9",
    claimed_source="10.0.7.9", ruser=None, tty=True, command="rsync --server -vlogDtpre . /srv",
    login_shell=True, tags=frozenset(), claimed_tags=frozenset(), outer=None,
)  # fmt: skip


def policy_text(
    count: int,
    shape: Callable[[int], str],
    effects: Sequence[str] = ("exempt",),
    roles: Optional[int] = None,
) -> bytes:
    text = ""
    for n in range(count):
        numbers = {"n": n, "high": n >> 8, "low": n & 255, "few": n % 50}
        effect = effects[n // 10 % len(effects)]
        text += f'[[rule]]\nname = "rule-{n}"\neffect = "{effect}"\n{shape(n).format(**numbers)}\n'
        text += f'reason = "reason {n}"\nowner = "owner-{n}@example.org"\nexpires = 2031-12-31\n\n'
    for n in range(roles or count):
        text += f'[roles.r{n}]\nusers = ["u{n}"]\ngroups = ["g{n}"]\n'
    return text.encode()


def times_of(action: Callable[[], object], rounds: int) -> List[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times)


def measure(name: str, source: bytes) -> None:
    files = [("bench.toml", source)]
    load = statistics.median(times_of(lambda: parse_policy(files), 5))
    cpu = time.process_time()
    parse_policy(files)
    cpu = time.process_time() - cpu
    policy: Policy = parse_policy(files)
    deciding = times_of(
        lambda: questions(FACTS, policy, NOW) or decide(FACTS, policy, NOW), ROUNDS
    )
    explaining = min(times_of(lambda: explain(FACTS, policy, NOW), 3))
    print(
        f"{name:26} {load * 1e3:8.0f} {cpu * 1e3:7.0f} {statistics.median(deciding) * 1e6:9.1f} "
        f"{deciding[int(ROUNDS * 0.99)] * 1e6:9.1f} {explaining * 1e3:11.1f}"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    print(f"{count} rules and {count} roles, Python {sys.version.split()[0]}")
    heads = f"{'load ms':>8} {'cpu ms':>7} {'decide us':>9} {'p99 us':>9} {'explain ms':>11}"
    print(f"{'rules ask for':26} {heads}")
    shapes = list(SHAPES.values())
    mixed = policy_text(count, lambda n: MIXED[n % len(MIXED)], EFFECTS, 50)
    measure("all effects, conditions", mixed)
    measure("a mixture of all", policy_text(count, lambda n: shapes[n % len(shapes)]))
    for name, shape in SHAPES.items():
        measure(name, policy_text(count, lambda n, shape=shape: shape))  # type: ignore[misc]


if __name__ == "__main__":
    main()
