"""The command recuse-collector: set central storage up, run it, look into it."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import socket
import sqlite3
import stat
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from recuse import __version__, amounts, collector
from recuse import config as configuration
from recuse.config import CollectorConfig, Paths
from recuse.errors import CollectorError, FaultsFound, RecuseError
from recuse.sqlitefile import naming
from recuse.store import Store, fingerprint

USER = "recuse-collector"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        config = configuration.load_collector(arguments.config)
        return int(arguments.run(arguments, config))
    except RecuseError as error:
        print(f"recuse-collector: error: {error.message}", file=sys.stderr)
        for fault in getattr(error, "faults", ()):
            print(f"recuse-collector: error: {fault}", file=sys.stderr)
        if error.hint:
            print(f"recuse-collector: hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except (OSError, sqlite3.Error) as error:
        print(f"recuse-collector: error: {error}", file=sys.stderr)
        return CollectorError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recuse-collector", description="central storage for recuse, see recuse-collector(8)"
    )
    parser.add_argument("--version", action="version", version=f"recuse-collector {__version__}")
    parser.add_argument("--config", type=Path, default=Paths().collector_config, metavar="FILE")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make the store, its key and a certificate")
    init.add_argument("--name", action="append", default=[], metavar="NAME")
    init.set_defaults(run=_init)

    commands.add_parser("serve", help="run the service").set_defaults(run=_serve)

    token = commands.add_parser("token", help="make a token that enrols one host, once")
    token.add_argument("host", nargs="?", help="only a host of this name may use it")
    token.add_argument("--hours", type=int, default=24, metavar="N")
    token.set_defaults(run=_token)

    for name, run, text in (
        ("hosts", _hosts, "list enrolled hosts and how far each is stored"),
        ("status", _status, "say what is stored, and what was found wrong"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)
    return parser


def _init(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    _make_for_service(config.store.path)
    names = arguments.name or [socket.getfqdn()]
    service = config.store.path.stat()
    owner = (service.st_uid, service.st_gid) if os.geteuid() == 0 else (-1, -1)
    made = collector.make_certificate(
        config.tls.cert, config.tls.key, names, datetime.now(timezone.utc), owner=owner
    )
    store = _open(config, make=True)
    vkey = store.vkey
    store.close()
    if made:
        print(f"made certificate {config.tls.cert} for {', '.join(names)}")
        print("  give it to hosts as `ca` in recuse.toml, section [central]")
    else:
        print(f"kept certificate {config.tls.cert}")
    print(f"store {config.store.path}")
    print(f"key {vkey}")
    print(f"fingerprint {fingerprint(vkey)}")
    print("next: systemctl enable --now recuse-collector; recuse-collector token HOST")
    return 0


def _serve(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    return collector.main(config)


def _token(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    if not 0 < arguments.hours <= 24 * 365:
        raise CollectorError("a token lives 1 to 8760 hours")
    store = _open(config)
    try:
        print(store.new_token(arguments.host, arguments.hours * 3600))
    finally:
        store.close()
    return 0


def _hosts(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    store = _open(config)
    try:
        rows: List[Dict[str, Any]] = []
        for host in store.hosts():
            heads = store.heads(host.prefix)
            rows.append(
                {
                    "host": host.prefix,
                    "enrolled": _time(host.enrolled_s),
                    "ledgers": [
                        {"origin": h.origin, "entries": h.size, "last": _time(h.seen_s)}
                        for h in heads
                    ],
                }
            )
    finally:
        store.close()
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['host']}  enrolled {row['enrolled']}")
        for ledger in row["ledgers"]:
            origin = ledger["origin"]
            size = amounts.number(ledger["entries"], "entry", "entries")
            print(f"  {origin}  {size}, last {ledger['last']}")
    return 0


def _status(arguments: argparse.Namespace, config: CollectorConfig) -> int:
    """Exit with 10 if the store holds findings that need somebody."""
    store = _open(config)
    try:
        hosts, findings, vkey = store.hosts(), store.findings(), store.vkey
        entries = sum(head.size for host in hosts for head in store.heads(host.prefix))
    finally:
        store.close()
    if arguments.json:
        found = [
            {"time": _time(f.time_s), "origin": f.origin, "kind": f.kind, "detail": f.detail}
            for f in findings
        ]
        status = {
            "key": vkey,
            "fingerprint": fingerprint(vkey),
            "hosts": len(hosts),
            "entries": entries,
            "findings": found,
        }
        print(json.dumps(status))
    else:
        print(f"store {config.store.path}, key {vkey}, fingerprint {fingerprint(vkey)}")
        counted = (len(hosts), "host"), (entries, "entry", "entries"), (len(findings), "finding")
        print(", ".join(amounts.number(*one) for one in counted))
        for finding in findings:
            print(f"  {_time(finding.time_s)} {finding.kind}: {finding.detail}")
    return FaultsFound.exit_code if findings else 0


def _make_for_service(path: Path) -> None:
    """Make the directory of the store, owned by the service's user if there is one."""
    with naming(path):
        if not path.is_dir():
            path.mkdir(mode=0o750, parents=True)
        empty = set(os.listdir(path)) <= {"lost+found"}
        if os.geteuid() == 0 and path.stat().st_uid == 0 and empty:
            try:
                user = pwd.getpwnam(USER)
            except KeyError:
                return
            os.chown(path, user.pw_uid, user.pw_gid)


def _open(config: CollectorConfig, make: bool = False) -> Store:
    """Open the store as the user it belongs to: root must leave no file the service cannot use."""
    path = config.store.path
    if not make and not (path / "store.db").exists():
        raise CollectorError(f"{path} is not a store", "make one with: recuse-collector init")
    owner = path.stat()
    if not stat.S_ISDIR(owner.st_mode):
        raise CollectorError(f"{path} is not a directory")
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    return Store(path, collector.store_name(config))


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main())
