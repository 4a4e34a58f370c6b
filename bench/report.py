"""Put the figures of a benchmark on a page, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Mapping[str, float]]

HEAD = """# What recuse costs

`sudo make bench` boots a throw-away Debian 12 host with the packages, installs the peers, runs
everything side by side in one run and writes this page. Rounds are interleaved: each starts every
contender once, in turn, so a noisy machine meets all alike. *floor* is bench/floor.c: a bare relay
in C that logs and does nothing else. Of every flood, what was displayed was checked against what
the command wrote, and the recording against what was displayed. Absolute times differ from machine
to machine and run to run, the ratios much less.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratio(value: float, by: float) -> str:
    return f"{value / by:.2f}" if by else "-"


def compared(figures: Figures, columns: Mapping[str, str], key: str, against: Sequence[str]) -> str:
    """Lay out figures by contender, with the ratio of one of them to some contenders."""
    head = ["", *columns.values(), *(f"of {name}" for name in against)]
    rows = [
        [name, *(f"{row[column]:.3g}" for column in columns)]
        + [ratio(row[key], figures[name_of][key]) for name_of in against]
        for name, row in figures.items()
    ]
    return table(head, rows)


def startup(found: Mapping[str, Any]) -> str:
    first, whole = found["added_first_ms"], found["added_whole_ms"]
    against = [one for one in ("tlog", "sudo_logsrvd", "script", "floor") if one in first]
    rows = [
        [name, f"{first[name]['median']:.2f}", f"{whole[name]['median']:.2f}"]
        + [ratio(first[name]["median"], first[one]["median"]) for one in against]
        for name in first
    ]
    bare = found["bare_first_ms"]["median"]
    return (
        f"## Start of a session, {found['rounds']} rounds, medians\n\n"
        "Decision and durable ledger entry included; *-login* has PAM's question to the agent in\n"
        f"front, with a second durable entry. A bare shell needs {bare:.2f} ms to its first byte.\n"
        f"A login with a session costs the agent {found['agent_cpu_ms']} ms of processor time.\n\n"
        + table(
            ["", "ms added to the first byte", "to the exit", *(f"of {a}" for a in against)], rows
        )
    )


FLOW = {
    "mib_per_s": "MiB/s",
    "path_cpu_s": "CPU s per 100 MiB in the session",
    "all_cpu_s": "in all",
    "exit_ms": "last byte to exit, ms",
    "log_ratio": "log, of the output",
}
KEYS = {"median_us": "median us", "p99_us": "p99 us", "mean_us": "mean us"}


def faults(figures: Figures) -> str:
    """Say which recorders did not display or keep everything."""
    said = [
        f"\nNot all was {word}: by {', '.join(bad)}.\n"
        for key, word in (("displayed_whole", "displayed"), ("kept_whole", "kept as displayed"))
        if (bad := [name for name, row in figures.items() if row.get(key, 1) < 1])
    ]
    failed = [f"{name} ({row['failed']:.0f})" for name, row in figures.items() if row["failed"]]
    if failed:
        said.append(f"\nFailed, and left out of the medians: {', '.join(failed)}.\n")
    return "".join(said)


INTERRUPTS = {
    f"{kind}_{key}": f"{what}, {words}"
    for kind, what in (("yes", "`yes`"), ("random", "`cat /dev/urandom`"))
    for key, words in (("median_ms", "median ms"), ("worst_ms", "worst"), ("kib", "KiB, most"))
}


def interrupts(figures: Figures) -> str:
    unanswered = [
        f"{name} ({count:.0f})"
        for name, row in figures.items()
        if (count := sum(value for key, value in row.items() if key.endswith("_unanswered")))
    ]
    return (
        "## ^C through a flood\n\nAfter half a second of it: until all of it was read, and what"
        " still came. *slow* and *gap* have a\nlimit of 1 MiB a second.\n\n"
        + compared(figures, INTERRUPTS, "yes_median_ms", ())
        + (f"\nNot answered: {', '.join(unanswered)}.\n" if unanswered else "")
    )


def flow(found: Mapping[str, Any]) -> str:
    parts = []
    for key, figures in found.items():
        where, _, what = key.partition("-")
        if where in ("pty", "pipe"):
            measured = {name: row for name, row in figures.items() if "mib_per_s" in row}
            known = [name for name in ("floor", "tlog", "script") if name in measured]
            parts.append(
                f"## {what.capitalize()} through a {where}, {found['mib']} MiB\n\n"
                + compared(measured, FLOW, "mib_per_s", known)
                + faults(figures)
            )
        elif key == "interrupts":
            parts.append(interrupts(figures))
        elif where == "keys":
            parts.append(
                f"## A key and its echo, {what}\n\n"
                + compared(figures, KEYS, "mean_us", ("floor", "tlog", "script"))
            )
    calls = ", ".join(f"{name} {count:.1f}" for name, count in found["calls_per_key"].items())
    parts.append(f"System calls of the recorder for a key: {calls}.\n")
    return "\n".join(parts)


def scale(found: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{row['uss_kb']:.0f}", f"{row['pss_kb']:.0f}", f"{row['wakeups_per_s']:.2f}"]
        for name, row in found["idle"].items()
    ]
    many, people, logins = found["many"], found["people"], found["logins"]
    return (
        "## Idle sessions\n\nThe recorder's own memory, the median of those held.\n\n"
        + table(["", "USS kB", "PSS kB", "wake-ups a second"], rows)
        + f"\n{found['sessions']} recorded sessions at once: {many['uss_kb']:.0f} kB USS each, "
        f"{many['wakeups_per_s']:.3f} wake-ups a second each; the agent "
        f"{many['agent_rss_kb'] / 1024:.1f} MB. When each types and prints like a person "
        f"({people['keys_per_s']:.0f} keys a second in all) the agent takes "
        f"{people['agent_core_share']:.0%} of a core and {people['agent_rss_kb'] / 1024:.1f} MB.\n"
        f"\n{logins['rate']:.0f} logins with a session a second: {logins['failed']:.0f} failed, "
        f"median {logins['median_ms']:.1f} ms, p99 {logins['p99_ms']:.1f} ms, slowest "
        f"{logins['slowest_ms']:.0f} ms.\n"
    )


def loss(found: Figures) -> str:
    rows = [
        [name, f"{row['displayed_lines']:.0f}", f"{row['lost_lines']:.0f}"]
        for name, row in found.items()
    ]
    return "## What a kill -9 of the recorder loses\n\n" + table(
        ["", "lines displayed", "of these not in the recording"], rows
    )


def ssh(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for key, name in (("ssh", "login, `ssh -tt`"), ("channel", "channel of a standing connection")):
        figures = found[key]
        rows.append(
            [name, f"{figures['bare']:.1f}"]
            + [f"{figures[one]:.1f}" for one in ("recuse", "exempt", "tlog")]
            + [ratio(figures["recuse"], figures["tlog"]), ratio(figures["exempt"], figures["tlog"])]
        )
    head = ["ms", "bare", "recuse adds", "exempt adds", "tlog adds"]
    head += ["recuse of tlog", "exempt of tlog"]
    words = (
        "Keys are exchanged by curve25519-sha256: with the default's the client computes for much "
        "of a login.\n\n"
    )
    return "## Over ssh\n\n" + words + table(head, rows)


def transfer(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        between = f"{row['lowest_ratio']:.3f} to {row['highest_ratio']:.3f}"
        rows.append(
            [f"{row['way']}, {row['link']}", f"{row['bare_s']:.2f}", f"{row['recuse_s']:.2f}"]
            + [f"{row['ratio']:.3f}", between, f"{row['spool_bytes'] / 1000:.1f}"]
        )
    head = ["", "bare, s", "recuse, s", "of bare, median", "of all rounds", "kB of spool, most"]
    return (
        f"## rsync of {found['mib']} MiB over ssh, {found['rounds']} rounds\n\n"
        "`rsync -aW` of random bytes; what arrived was compared. Both ends share the cores of one\n"
        "machine: over *loopback* nothing else holds a transfer up, and all that recuse computes\n"
        "is time. *1 Gbit/s* is the same through tc-tbf(8), as between two machines.\n\n"
        + table(head, rows)
    )


PARTS: Mapping[str, Callable[[Any], str]] = {
    "startup": startup,
    "flow": flow,
    "scale": scale,
    "loss": loss,
    "transfer": transfer,
}


def page(found: Mapping[str, Any]) -> str:
    """Make the page of what was found; parts that were not run are left out."""
    parts = [HEAD, f"{found['machine']}; load before the run {found['load_before']:.1f}.\n"]
    parts += [make(found[name]) for name, make in PARTS.items() if name in found]
    if "ssh" in found:
        parts.append(ssh(found))
    return "\n".join(parts)
