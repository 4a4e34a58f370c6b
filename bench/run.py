"""Measure recuse against tlog and script, side by side on one booted host; print the ratios.

`make bench` runs this as root. What is measured, and how, is in startup.py and policy.py beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "system"))

from accounts import enable  # noqa: E402
from host import Host  # noqa: E402

TLOG = '{"writer": "file", "file": {"path": "/var/bench/tlog"}, "shell": "/bin/sh", "notice": ""}\n'


def time_ssh(host: Host, user: str) -> float:
    """Log in once with ssh -tt and run a command; return the milliseconds it took."""
    command = host.ssh_command(user, "echo ready", tty=True)
    began = time.monotonic_ns()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    ended = time.monotonic_ns()
    if done.returncode or b"ready" not in done.stdout:
        raise SystemExit(f"ssh as {user}: exit {done.returncode}, {done.stdout!r} {done.stderr!r}")
    return (ended - began) / 1e6


def ssh_logins(host: Host, rounds: int) -> dict[str, float]:
    """Time whole logins over ssh: recorded, exempt, and with tlog as the login shell.

    erin has tlog-rec-session as her shell. For her and for the bare figure recuse is switched off
    by its own file, /etc/recuse/disabled.
    """
    kinds = {"bare": "alice", "recuse": "alice", "exempt": "dave", "tlog": "erin"}
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for n in range(rounds + 1):
        for name, user in kinds.items():
            off = name in ("bare", "tlog")
            if off:
                host.write("/etc/recuse/disabled", "")
            else:
                host.path("/etc/recuse/disabled").unlink(missing_ok=True)
            value = time_ssh(host, user)
            if n:
                took[name].append(value)
        print(f"\rssh login round {n + 1} of {rounds + 1}", end="", file=sys.stderr)
    print(file=sys.stderr)
    host.path("/etc/recuse/disabled").unlink(missing_ok=True)
    return {
        name: round(statistics.median(a - b for a, b in zip(values, took["bare"])), 2)
        if name != "bare"
        else round(statistics.median(values), 2)
        for name, values in took.items()
    }


def report(result: dict, ssh: dict[str, float]) -> str:
    first = {k: v["median"] for k, v in result["added_first_ms"].items()}
    whole = {k: v["median"] for k, v in result["added_whole_ms"].items()}
    lines = [
        f"start of a session on a terminal, {result['rounds']} rounds interleaved, medians:",
        f"  bare shell to first byte {result['bare_first_ms']['median']:.2f} ms; added by",
        f"  {'':16}{'first byte':>12}{'of tlog':>9}{'of script':>10}{'to exit':>10}{'of tlog':>9}",
    ]
    for name in first:
        lines.append(
            f"  {name:16}{first[name]:9.2f} ms{first[name] / first['tlog']:9.2f}"
            f"{first[name] / first['script']:10.2f}{whole[name]:7.2f} ms"
            f"{whole[name] / whole['tlog']:9.2f}"
        )
    lines += [
        "",
        f"whole ssh -tt login with a command, bare {ssh['bare']:.1f} ms; added by (median; the"
        " spread is some 10 ms)",
    ]
    lines += [
        f"  {k:16}{v:9.2f} ms{v / ssh['tlog']:9.2f} of tlog" for k, v in ssh.items() if k != "bare"
    ]
    lines += ["", "idle session, the recorder's own memory (median of those held):"]
    for name, row in result["idle"].items():
        lines.append(f"  {name:16}USS {row['uss_kb']:6.0f} kB   PSS {row['pss_kb']:6.0f} kB")
    agent = result["idle"]["recuse"]
    lines.append(f"  recuse-agent, a login with a session: {result['agent_cpu_ms']} ms of CPU")
    lines.append(
        f"  recuse-agent with {result['sessions']} sessions: RSS {agent['agent_rss_kb']} kB, "
        f"USS {agent['agent_uss_kb']} kB"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--ssh-rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Host() as host:
        enable(host)
        host.write("/etc/tlog/tlog-rec-session.conf", TLOG)
        host.run(
            "install -d -m 777 /var/bench; install -m 666 /dev/null /var/bench/tlog", check=True
        )
        host.run("usermod", "--shell", "/usr/bin/tlog-rec-session", "erin", check=True)
        host.path("/etc/recuse/policy.d/10-test.toml").write_text(
            host.read("/etc/recuse/policy.d/10-test.toml").split('[[rule]]\nname = "erin')[0]
        )
        host.run("systemctl", "reload", "recuse-agent.service", check=True)
        host.copy_in(HERE / "startup.py", "/root/startup.py")
        done = subprocess.run(
            host.enter(
                "python3", "/root/startup.py", "--rounds", str(options.rounds), "--exempt", "dave"
            ),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        result = json.loads(done.stdout)
        ssh = ssh_logins(host, options.ssh_rounds)
    subprocess.run(
        [sys.executable, str(HERE / "bench_policy.py")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent / "agent")},
    )
    if options.json:
        json.dump({**result, "ssh": ssh}, sys.stdout, indent=2)
        print()
    else:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
        print(report(result, ssh))


if __name__ == "__main__":
    main()
