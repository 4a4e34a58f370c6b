"""Measure recuse against its peers, side by side on one booted host; write docs/benchmarks.md.

`make bench` runs this as root; with `--only startup --contenders recuse,floor` it takes a minute.
It installs the peers (tlog and sudo are in the image, ttyrec and asciinema come from Debian),
compiles the floor, and lets each part run inside the host: startup.py, flow.py, scale.py, loss.py;
logins and transfers over ssh are timed from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "system"))

from accounts import enable  # noqa: E402
from host import ADDRESS, Host, cache_dir  # noqa: E402

INSIDE = ("startup", "flow", "scale", "loss")
PARTS = (*INSIDE, "ssh", "transfer", "policy")
PEERS = ("ttyrec", "asciinema")

POLICY = """
[[rule]]
name = "dave-is-exempt"
effect = "exempt"
users = ["dave"]
reason = "handles patient data"
owner = "privacy@example.org"
expires = 2099-12-31
"""
# The default exchange, with a key of sntrup761, has the client compute for much of a login.
QUICK_EXCHANGE = "KexAlgorithms=curve25519-sha256"
SIZES = {
    "all": {
        "startup": "--rounds 60 --cpu 100",
        "flow": "--rounds 5 --mib 100 --keys 2000",
        "scale": "--sessions 1000 --seconds 20",
        "loss": "--rounds 5",
        "ssh": "80",
        "transfer": "5 1024",
    },
    "few": {
        "startup": "--rounds 25 --cpu 50",
        "flow": "--rounds 2 --mib 100 --interrupts 3 --keys 1000",
        "scale": "--sessions 1000 --seconds 10",
        "loss": "--rounds 3",
        "ssh": "40",
        "transfer": "2 1024",
    },
    "one": {
        "startup": "--rounds 3 --cpu 5",
        "flow": "--rounds 1 --mib 2 --interrupts 1 --keys 100",
        "scale": "--sessions 50 --seconds 3",
        "loss": "--rounds 1",
        "ssh": "2",
        "transfer": "1 16",
    },
}


def say(words: str) -> None:
    print(f"==> {words}", file=sys.stderr)


def furnish(host: Host) -> None:
    """Enable recuse, install the peers and put the parts of the benchmark into the host."""
    enable(host, POLICY)
    place = cache_dir() / "bench-debs"
    place.mkdir(exist_ok=True)
    if not all(list(place.glob(f"{peer}_*.deb")) for peer in PEERS):
        say(f"fetching {', '.join(PEERS)}")
        subprocess.run(["apt-get", "-q", "download", *PEERS], cwd=place, check=True)
    for deb in place.glob("*.deb"):
        host.copy_in(deb, f"/root/{deb.name}")
        host.run("dpkg", "--install", "--force-depends", f"/root/{deb.name}", check=True)
    host.run("install -d -m 777 /var/bench; install -d /root/bench", check=True)
    with tempfile.TemporaryDirectory() as made:
        compiled = Path(made, "floor")
        subprocess.run(
            ["gcc", "-O2", "-static", "-o", str(compiled), str(HERE / "floor.c"), "-lutil"],
            check=True,
        )
        host.copy_in(compiled, "/var/bench/floor")
    host.path("/var/bench/floor").chmod(0o755)
    for part in ("contenders", *INSIDE):
        host.copy_in(HERE / f"{part}.py", f"/root/bench/{part}.py")
    # What is displayed is compared byte by byte; the peers' notices are off, too.
    host.write("/etc/recuse/recuse.toml", "[session]\nnotice = false\n")
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def part(host: Host, name: str, *options: str) -> Any:
    """Run one part inside the host, once more if a peer hangs; give what it found."""
    for last in (False, True):
        say(name)
        done = subprocess.run(
            host.enter("python3", f"/root/bench/{name}", *options),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        if last:
            raise SystemExit(f"{name} failed twice")


def time_ssh(host: Host, user: str, control: str = "") -> float:
    """Log in once with ssh -tt and run a command; return the milliseconds it took.

    With a control socket it is a channel over a connection that stands.
    """
    options = (f"ControlPath={control}",) if control else (QUICK_EXCHANGE,)
    command = host.ssh_command(user, "echo ready", tty=True, options=options)
    began = time.monotonic_ns()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    ended = time.monotonic_ns()
    if done.returncode or b"ready" not in done.stdout:
        raise SystemExit(f"ssh as {user}: exit {done.returncode}, {done.stdout!r} {done.stderr!r}")
    return (ended - began) / 1e6


def switch(host: Host, on: bool) -> None:
    """Switch recuse on or off, by its own file."""
    if on:
        host.path("/etc/recuse/disabled").unlink(missing_ok=True)
    else:
        host.write("/etc/recuse/disabled", "")


class Ssh:
    """Whole logins over ssh, and channels: recorded, exempt, and with tlog as the login shell.

    erin has tlog-rec-session as her shell. For her and for the bare figure recuse is switched off
    by its own file, /etc/recuse/disabled.
    """

    USERS = {"bare": "alice", "recuse": "alice", "exempt": "dave", "tlog": "erin"}

    def __init__(self, host: Host) -> None:
        self._host = host
        host.run("usermod", "--shell", "/usr/bin/tlog-rec-session", "erin", check=True)
        # Else each login starts a service manager of its user, and each end stops it: five times
        # what is measured here, and never twice the same.
        host.run("loginctl", "enable-linger", *set(self.USERS.values()), check=True)

    def measure(self, rounds: int, channels: bool) -> dict[str, float]:
        """Give medians in ms: the bare figure, and what the others add to it."""
        took: dict[str, list[float]] = {name: [] for name in self.USERS}
        masters: dict[str, subprocess.Popen[bytes]] = {}
        with tempfile.TemporaryDirectory(prefix="b-") as place:
            for name, user in self.USERS.items() if channels else ():
                self._switch(name)
                masters[name] = self._stand(user, f"{place}/{name}")
            for n in range(rounds + 1):
                for name, user in self.USERS.items():
                    self._switch(name)
                    value = time_ssh(self._host, user, f"{place}/{name}" if channels else "")
                    if n:
                        took[name].append(value)
                print(f"\rround {n + 1} of {rounds + 1}", end="", file=sys.stderr)
            print(file=sys.stderr)
            for master in masters.values():
                master.terminate()
                master.wait()
        self._switch("recuse")
        bare = took.pop("bare")
        return {
            "bare": round(statistics.median(bare), 2),
            **{
                name: round(statistics.median(a - b for a, b in zip(values, bare)), 2)
                for name, values in took.items()
            },
        }

    def _switch(self, name: str) -> None:
        switch(self._host, name not in ("bare", "tlog"))

    def _stand(self, user: str, control: str) -> "subprocess.Popen[bytes]":
        options = ("ControlMaster=yes", f"ControlPath={control}")
        made = subprocess.Popen(
            [*self._host.ssh_command(user, options=options), "-N"], stdin=subprocess.DEVNULL
        )
        until = time.monotonic() + 20
        while not Path(control).exists():
            if time.monotonic() > until or made.poll() is not None:
                raise SystemExit(f"no connection of {user}")
            time.sleep(0.02)
        return made


@contextlib.contextmanager
def loopback(_: Host) -> Iterator[list[str]]:
    """Leave the host's only link, which is to itself, as it is; rsync needs no options for it."""
    yield []


@contextlib.contextmanager
def gigabit(host: Host) -> Iterator[list[str]]:
    """Make that link take 1 Gbit/s; where the kernel has no tbf, give options that do for rsync."""
    shape = ("tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
    is_shaped = host.run("tc", "qdisc", "add", "dev", "lo", "root", *shape).returncode == 0
    try:
        yield [] if is_shaped else ["--bwlimit=122070"]
    finally:
        if is_shaped:
            host.run("tc", "qdisc", "del", "dev", "lo", "root", check=True)


class Transfer:
    """One large file by rsync over ssh, there and back, with recuse switched off and on.

    As fast as both ends can on the cores they share, and over a link as slow as most are.
    """

    REMOTE = "/home/alice/large"
    WAYS = ("upload", "download")
    LINKS: Mapping[str, Callable[[Host], AbstractContextManager[list[str]]]] = {
        "loopback": loopback, "1 Gbit/s": gigabit,
    }  # fmt: skip

    def __init__(self, host: Host, mib: int, place: Path) -> None:
        self._host, self._mib = host, mib
        self._large, self._back = place / "large", place / "back"
        self._rsh = " ".join(host.client("ssh")[3:])
        with open(self._large, "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))

    def measure(self, rounds: int) -> dict[str, Any]:
        """Give medians: seconds of both, their ratio round by round, and bytes in the spool."""
        cases = [(way, link) for link in self.LINKS for way in self.WAYS]
        took: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
        for n in range(rounds + 1):
            for case in cases:
                figures = self._both(*case, "bare" if n % 2 else "recuse")
                if n:
                    took[case].append(figures)
            print(f"\rround {n + 1} of {rounds + 1}", end="", file=sys.stderr)
        print(file=sys.stderr)
        rows = [{"way": way, "link": link, **self._sum_up(took[way, link])} for way, link in cases]
        return {"mib": self._mib, "rounds": rounds, "rows": rows}

    @staticmethod
    def _sum_up(runs: list[dict[str, float]]) -> dict[str, float]:
        ratios = [run["recuse_s"] / run["bare_s"] for run in runs]
        return {
            **{key: statistics.median(run[key] for run in runs) for key in ("bare_s", "recuse_s")},
            "ratio": statistics.median(ratios),
            "lowest_ratio": min(ratios),
            "highest_ratio": max(ratios),
            "spool_bytes": max(run["spool_bytes"] for run in runs),
        }

    def _both(self, way: str, link: str, first: str) -> dict[str, float]:
        """Transfer once without recuse and once with it; give the figures.

        Who goes first changes: the second one finds what the first left to the disk.
        """
        found = {}
        for name in sorted(("bare", "recuse"), key=lambda name: name != first):
            switch(self._host, name == "recuse")
            with self.LINKS[link](self._host) as options:
                found[f"{name}_s"] = self._once(way, *options)
            if name == "recuse":
                found["spool_bytes"] = self._kept()
        return found

    def _once(self, way: str, *options: str) -> float:
        """Transfer the file once, compare it; give the seconds."""
        remote, there = self._host.path(self.REMOTE), f"alice@{ADDRESS}:{self.REMOTE}"
        source, target, made = str(self._large), there, remote
        if way == "download":
            source, target, made = there, str(self._back), self._back
            if not remote.exists():
                self._host.copy_in(self._large, self.REMOTE)
        made.unlink(missing_ok=True)
        os.sync()  # else who comes next pays for writing it
        rsync = self._host.network("rsync", "-aW", *options, "-e", self._rsh, source, target)
        began = time.monotonic()
        subprocess.run(rsync, stdin=subprocess.DEVNULL, check=True)
        seconds = time.monotonic() - began
        if not filecmp.cmp(self._large, made, shallow=False):
            raise SystemExit(f"{way}: not the bytes that were sent")
        return seconds

    def _kept(self) -> int:
        """Give the bytes that the newest session left in the spool, as its ledger entries say."""
        self._host.run("recuse", "sync", check=True)
        found = self._host.json("recuse", "sessions", "--user", "alice", "--json")
        newest = max(found["sessions"], key=lambda row: row["seq"])
        if not newest["gaps"] or newest["outcome"] != "partial":
            raise SystemExit(f"a transfer was not recorded: {newest}")
        return int(newest["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", choices=SIZES, default="all", help="few take 10 minutes; one: does it run?"
    )
    parser.add_argument("--mib", type=int, help="size of the file that is transferred")
    parser.add_argument("--only", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--contenders", metavar="A,B...", help="of --only startup")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--write", metavar="FILE", help="write the page there")
    options = parser.parse_args()
    if options.only not in (None, *PARTS):
        parser.error(f"no part: {options.only}")
    if options.contenders and options.only != "startup":
        parser.error("--contenders is for --only startup")
    # A script begins with it ignored what it puts behind it by &, and so would be each ^C here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sizes = SIZES[options.rounds]
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "load_before": os.getloadavg()[0],
    }
    with Host() as host:
        furnish(host)
        for name in INSIDE:
            if options.only in (None, name):
                more = ("--contenders", options.contenders) if options.contenders else ()
                found[name] = part(host, f"{name}.py", *sizes[name].split(), *more)
        if options.only in (None, "ssh"):
            say("logins over ssh")
            ssh = Ssh(host)
            found["ssh"] = ssh.measure(int(sizes["ssh"]), channels=False)
            found["channel"] = ssh.measure(2 * int(sizes["ssh"]), channels=True)
        if options.only in (None, "transfer"):
            say("a transfer over ssh")
            rounds, mib = map(int, sizes["transfer"].split())
            with tempfile.TemporaryDirectory(dir=cache_dir()) as place:
                found["transfer"] = Transfer(host, options.mib or mib, Path(place)).measure(rounds)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    page = report.page(found)
    print(page)
    if options.write:
        Path(options.write).write_text(page)
    if options.only in (None, "policy"):
        subprocess.run(
            [sys.executable, str(HERE / "bench_policy.py")],
            check=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent / "agent")},
        )


if __name__ == "__main__":
    main()
