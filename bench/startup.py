#!/usr/bin/python3
"""Time what recorders add to the start of a session, and what one costs in memory while idle.

Runs on a host with recuse, tlog and script installed (bench/run.py boots one), as root. Each
round starts every contender once, in turn, on a pseudo-terminal of its own as an ordinary user,
with the same command; so drift of the machine meets all of them alike. What is added is a
contender's time less the bare shell's in the same round. Prints JSON: milliseconds and kB, as
medians with the quartiles beside them.

recuse is started in two ways: as a session of a login that stands (a channel of a connection),
and with the login itself in front, as PAM does it for each new connection: two questions to the
agent, two durable entries. The peers know no logins and have only the one.

Every run also checks that the command's output was displayed, whole.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from recuse import wire

HOST_SOCKET = "/run/recuse/host.sock"
SHELL = "/usr/lib/recuse/recuse-shell"
MARK = "ready-6f1c"


@dataclass(frozen=True)
class Contender:
    """Whom to start as, the argument vector less the command, and whether PAM's part is first."""

    user: str
    argv: tuple[str, ...]
    login: bool = False


def contenders(recorded: str, exempt: str) -> dict[str, Contender]:
    script = ("/usr/bin/script", "-q", "-e", "-f", "/var/bench/script", "-c")
    return {
        "bare": Contender(recorded, ("/bin/sh", "-c")),
        "recuse": Contender(recorded, (SHELL, "-c")),
        "recuse-login": Contender(recorded, (SHELL, "-c"), login=True),
        "exempt": Contender(exempt, (SHELL, "-c")),
        "exempt-login": Contender(exempt, (SHELL, "-c"), login=True),
        "tlog": Contender(recorded, ("/usr/bin/tlog-rec-session", "-c")),
        "script": Contender(recorded, script),
    }


def login_packet(user: str) -> bytes:
    """Make what pam_recuse sends to tell the agent of a login."""
    return wire.encode(wire.Login(b"bench", user.encode(), b"", b"", b""))


def log_in(packet: bytes) -> bytes:
    """Tell the agent of a login, as pam_recuse does; return its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
        conn.connect(HOST_SOCKET)
        conn.send(packet)
        return conn.recv(wire.MAX_MESSAGE)


def start(contender: Contender, command: str) -> tuple[int, int]:
    """Start a contender with a command on a new pty; return its pid and the master."""
    user, argv = contender.user, contender.argv
    entry = pwd.getpwnam(user)
    packet = login_packet(user) if contender.login else b""
    pid, master = os.forkpty()
    if pid:
        return pid, master
    if packet:
        log_in(packet)
    os.initgroups(user, entry.pw_gid)
    tty = os.ttyname(0)
    os.chown(tty, entry.pw_uid, -1)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.chdir("/")
    env = {
        "PATH": "/usr/bin:/bin",
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "HOME": entry.pw_dir,
        "USER": user,
        "SHELL": "/bin/sh",
    }
    os.execve(argv[0], [*argv, command], env)


def read_until(master: int, mark: bytes, seconds: float) -> bytes:
    """Read the terminal until `mark` was seen, or fail."""
    seen = b""
    end = time.monotonic() + seconds
    while mark not in seen:
        ready, _, _ = select.select([master], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise SystemExit(f"no {mark!r} within {seconds} s, only {seen!r}")
        try:
            chunk = os.read(master, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            raise SystemExit(f"terminal closed before {mark!r}: {seen!r}")
        seen += chunk
    return seen


def run_once(contender: Contender) -> tuple[float, float]:
    """Run a command that prints MARK; return ms until MARK was read, and until the exit."""
    began = time.monotonic_ns()
    pid, master = start(contender, f"echo {MARK}")
    read_until(master, MARK.encode(), 20)
    first = time.monotonic_ns()
    while True:
        try:
            if not os.read(master, 65536):
                break
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    ended = time.monotonic_ns()
    os.close(master)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{contender.argv[0]} ended with status {status}")
    return (first - began) / 1e6, (ended - began) / 1e6


def memory(pid: int, kinds: tuple[str, ...] = ("Private_Clean", "Private_Dirty")) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as f:
        text = f.read()
    return sum(int(m) for k in kinds for m in re.findall(rf"^{k}:\s+(\d+) kB", text, re.M))


def idle_memory(contender: Contender, count: int) -> dict[str, float]:
    """Hold `count` idle sessions and return the recorder's own USS and PSS per session, kB."""
    held = []
    for _ in range(count):
        pid, master = start(contender, f"echo {MARK}; exec sleep 1000")
        read_until(master, MARK.encode(), 20)
        held.append((pid, master))
    uss = [memory(pid) for pid, _ in held]
    pss = [memory(pid, ("Pss",)) for pid, _ in held]
    agent = agent_memory() if contender.argv[0] == SHELL else {}
    for _, master in held:
        os.close(master)
    for pid, _ in held:
        try:
            os.kill(pid, signal.SIGKILL)  # script(1) does not end by a hang-up
        except ProcessLookupError:
            pass
        os.waitpid(pid, 0)
    return {"uss_kb": statistics.median(uss), "pss_kb": statistics.median(pss), **agent}


def agent_pid() -> int:
    return int(os.popen("systemctl show -P MainPID recuse-agent.service").read())


def agent_memory() -> dict[str, int]:
    """Return RSS and USS of the agent, kB."""
    pid = agent_pid()
    return {"agent_rss_kb": memory(pid, ("Rss",)), "agent_uss_kb": memory(pid)}


def agent_cpu() -> float:
    """Return the seconds of processor time that the agent has used."""
    with open(f"/proc/{agent_pid()}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    q = statistics.quantiles(values, n=4)
    return {"q1": round(q[0], 3), "median": round(q[1], 3), "q3": round(q[2], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--sessions", type=int, default=100, help="idle sessions held for memory")
    parser.add_argument("--cpu", type=int, default=100, help="logins to count the agent's CPU over")
    parser.add_argument("--recorded", default="alice")
    parser.add_argument("--exempt", default="carol")
    options = parser.parse_args()

    fields = contenders(options.recorded, options.exempt)
    # The login that the sessions without one of their own belong to.
    answer = wire.decode(log_in(login_packet(options.recorded)))
    if not isinstance(answer, wire.Answer) or answer.verdict != wire.Verdict.ALLOW:
        raise SystemExit(f"the login was answered with {answer!r}")
    first: dict[str, list[float]] = {name: [] for name in fields}
    whole: dict[str, list[float]] = {name: [] for name in fields}
    order = list(fields)
    for n in range(options.rounds + 2):
        order.append(order.pop(0))
        for name in order:
            a, b = run_once(fields[name])
            if n >= 2:
                first[name].append(a)
                whole[name].append(b)
        print(f"\rround {n + 1} of {options.rounds + 2}", end="", file=sys.stderr)
    print(file=sys.stderr)
    added = {
        name: quartiles([a - b for a, b in zip(first[name], first["bare"])])
        for name in fields
        if name != "bare"
    }
    ended = {
        name: quartiles([a - b for a, b in zip(whole[name], whole["bare"])])
        for name in fields
        if name != "bare"
    }
    idle = {
        name: idle_memory(fields[name], options.sessions if name == "recuse" else 10)
        for name in ("recuse", "tlog", "script")
    }
    before = agent_cpu()
    for _ in range(options.cpu):
        run_once(fields["recuse-login"])
    cpu = (agent_cpu() - before) / options.cpu * 1e3
    json.dump(
        {
            "agent_cpu_ms": round(cpu, 2),
            "rounds": options.rounds,
            "sessions": options.sessions,
            "bare_first_ms": quartiles(first["bare"]),
            "added_first_ms": added,
            "added_whole_ms": ended,
            "idle": idle,
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
