"""A wall clock that steps while somebody is at work: of the agent alone, the host has its own."""

from __future__ import annotations

import json
import re
import time

from accounts import MAY_PAUSE, RULES, enable, export, watching
from host import Host
from office import by, entries, granted, open_office
from preloading import Clock

from recuse import records
from recuse.ledger import read_ledger

HOUR = 3600
SEGMENT_SECONDS = 2
CONFIG = f"""
[spool]
segment_seconds = "{SEGMENT_SECONDS}s"
"""
THREE_SECONDS = "for i in $(seq 30); do echo at-work-$i; sleep 0.1; done"


def verified(host: Host) -> str:
    """Assert that all verifies, and give what is said of it besides."""
    done = host.run("recuse", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_clock_that_steps_in_a_session_changes_nothing_of_it() -> None:
    with Host() as host:
        clock = Clock(host)
        host.write("/etc/recuse/recuse.toml", CONFIG)
        enable(host)
        with watching(host) as seen, host.login("alice") as terminal:
            terminal.expect(r"\$ $")
            for step in (HOUR, 0, -HOUR, 0):
                clock.step(step)
                assert b"at-work-30" in terminal.run(THREE_SECONDS)
            terminal.line("exit 3")
            assert terminal.wait() == 3
        session = seen.session
        assert (session["outcome"], session["exit_status"]) == ("recorded", 3)

        lines = export(host, session["session"]).splitlines()
        assert sum(line.startswith("at-work-") for line in lines) == 4 * 30
        cast = [json.loads(line) for line in export(host, session["session"], "cast").splitlines()]
        times = [event[0] for event in cast[1:]]
        assert times == sorted(times) and 0 <= times[0]
        took = times[-1]
        assert 12 <= took < 12 + HOUR / 2

        # Cut by the time that passed: an hour forward would make one at once, one back none at all.
        lengths = [one["t1"] - one["t0"] for one in session["segments"]]
        assert all(0 <= length < 3 * SEGMENT_SECONDS for length in lengths), lengths
        assert len(lengths) <= took / SEGMENT_SECONDS + 2, lengths

        found = [*map(records.parse, read_ledger(host.path("/var/lib/recuse/ledger")).entries())]
        assert [entry.index for entry in found] == list(range(len(found)))
        kept = [entry.time_ns for entry in found if entry.kind == "segment"]
        assert max(kept) - min(kept) > HOUR * 10**9  # the agent saw all of the steps
        told = verified(host)
        assert "is before that of the one before" in told


def test_pause_is_no_longer_than_was_said_whatever_the_clock_does() -> None:
    with Host() as host:
        clock = Clock(host)
        enable(host, RULES + MAY_PAUSE)
        with watching(host, sessions=7, logins=7) as seen, host.login("alice") as terminal:
            for steps in ((-HOUR, 0), (HOUR, 0), (HOUR, -HOUR)):
                terminal.line("recuse pause --reason personal --for 3s")
                terminal.expect("recording paused")
                for step in steps:
                    clock.step(step)
                    assert host.ssh("dave", "true").returncode == 0  # an entry of that time
                terminal.expect("recording resumed")
                terminal.run("echo afterwards")
            terminal.line("exit 0")
            assert terminal.wait() == 0
        [session] = [row["session"] for row in seen.sessions if row["user"] == "alice"]
        cast = [json.loads(line) for line in export(host, session, "cast").splitlines()[1:]]
        marks = " ".join(event[2] for event in cast if event[1] == "m")
        took = re.findall(r"recuse resumed after=(\d+)s ", marks)
        assert len(took) == 3 and all(3 <= int(one) < 15 for one in took), cast
        whys = [one["unmapped"]["recuse"]["why"] for one in entries(host, "resume")]
        assert whys == ["time"] * 3
        assert "is before that of the one before" in verified(host)


def test_exemption_is_no_longer_than_was_granted_whatever_the_clock_does() -> None:
    with Host() as host:
        clock = Clock(host)
        host.run("recuse", "enable", check=True)
        open_office(host)
        grant = granted(host, "alice", "--supervised", "--max", "5s")
        with watching(host) as seen, host.login("alice") as terminal:
            began = time.monotonic()
            terminal.run("echo in-private")
            clock.step(-HOUR)
            terminal.expect("no longer exempt")
            assert time.monotonic() - began > 3
            terminal.run("echo on-record")
            terminal.line("exit 0")
            assert terminal.wait() == 0
        assert seen.session["outcome"] == "partial"
        kept = export(host, seen.session["session"])
        assert "on-record" in kept and "in-private" not in kept
        shown = by(host, "alice", "recuse", "show", grant["grant"], "--json")
        assert json.loads(shown.stdout)["left"] == 0
        assert "is before that of the one before" in verified(host)
