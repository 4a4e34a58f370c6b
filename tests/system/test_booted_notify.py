"""Admins are told within a second, and nothing that goes wrong with it delays a login."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List

import pytest
from accounts import enable, event, watching
from host import Host
from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
CONFIG = """
[channel.mail]
type = "smtp"
host = "127.0.0.1"
port = 2525
tls = "none"
sender = "recuse@example.org"
to = ["security@example.org"]

[channel.siem]
type = "webhook"
url = "http://127.0.0.1:8580/hook"
secret = "/etc/recuse/notify.d/siem"

[channel.dead]
type = "webhook"
url = "http://127.0.0.1:8580/hang"
secret = "/etc/recuse/notify.d/siem"
timeout = "2s"
dead_after = "3s"

[channel.nobody]
type = "webhook"
url = "http://127.0.0.1:9/"
secret = "/etc/recuse/notify.d/siem"

[[route]]
channels = ["mail", "siem", "dead", "nobody"]
kinds = ["exempt", "refused"]
"""


class Receiver:
    """The mail server and webhook, as a process in the host's network."""

    def __init__(self, host: Host) -> None:
        program = str(Path(__file__).with_name("notice_receiver.py"))
        self._process = subprocess.Popen(
            host.network(sys.executable, program), stdout=subprocess.PIPE
        )
        self._came: List[Dict[str, Any]] = []
        self._rest = b""
        self.wait("ready")

    def _read(self, deadline: float) -> None:
        assert self._process.stdout is not None
        left = max(0.0, deadline - time.monotonic())
        assert select.select([self._process.stdout], [], [], left)[0], "nothing came in time"
        data = os.read(self._process.stdout.fileno(), 65536)
        assert data, "the receiver ended"
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._came += [json.loads(line) for line in lines]

    def wait(self, *hows: str) -> List[Dict[str, Any]]:
        """Take the first that came, or comes, in each of these ways, in that order."""
        deadline = time.monotonic() + 60
        found = []
        for how in hows:
            while not any(one["how"] == how for one in self._came):
                self._read(deadline)
            found.append(next(one for one in self._came if one["how"] == how))
            self._came.remove(found[-1])
        return found

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def notified() -> Iterator[Host]:
    with Host() as host:
        enable(host)
        host.run("install -m 640 -g recuse-notify /dev/stdin /etc/recuse/notify.d/siem",
                 input=SECRET + "\n", check=True)  # fmt: skip
        host.run("cat >/etc/recuse/notify.toml", input=CONFIG, check=True)
        host.run("recuse", "notify", "check", check=True)
        host.run("systemctl", "restart", "recuse-notify", check=True)
        yield host


@pytest.fixture
def receiver(notified: Host) -> Iterator[Receiver]:
    made = Receiver(notified)
    yield made
    made.close()


def decided(host: Host, entry_id: str) -> float:
    """Say when the entry of a notice was made, which is after the decision."""
    index = int(entry_id.rpartition(":")[2])
    code = (
        "from recuse.ledger import read_ledger; from recuse.records import parse;"
        f"e = next(read_ledger('/var/lib/recuse/ledger').entries({index}));"
        "print(parse(e).time_ns / 1e9)"
    )
    return float(host.run("python3", "-c", code, check=True).stdout)


def test_exempt_login_arrives_as_mail_and_as_webhook(
    notified: Host, receiver: Receiver, record_property: Any
) -> None:
    with watching(notified):
        assert notified.ssh("dave", "exit 3").returncode == 3
    mail, hook = receiver.wait("mail", "webhook")
    assert mail["id"] == hook["id"]
    assert "session of dave is exempt from recording by rule dave-is-exempt" in mail["subject"]
    event_ = Webhook(SECRET).verify(hook["body"], hook["headers"])
    assert event_["data"]["unmapped"]["recuse"]["user"] == "dave"
    entered = decided(notified, mail["id"])
    for one in (mail, hook):
        assert one["at"] > entered
        record_property(f"{one['how']}_seconds", round(one["at"] - entered, 3))
        print(f"{one['how']}: {1000 * (one['at'] - entered):.0f} ms after the entry")


def test_refused_login_arrives(notified: Host, receiver: Receiver) -> None:
    assert notified.ssh("erin", "true").returncode != 0
    mail, _ = receiver.wait("mail", "webhook")
    assert "erin was refused by rule erin-is-out" in mail["subject"]


def test_channels_that_hang_or_refuse_delay_no_login(notified: Host, receiver: Receiver) -> None:
    with watching(notified, sessions=3, logins=3):
        notified.ssh("dave", "true")
        receiver.wait("hanging")  # now, and for as long as the channel's time-out
        for _ in range(2):
            assert notified.ssh("dave", "exit 3").returncode == 3
    seen: List[str] = []
    while len(seen) < 3:
        seen.append(receiver.wait("mail")[0]["id"])
    assert seen == sorted(seen, key=lambda one: int(one.rpartition(":")[2]))
    notified.wait_journal(event("channel-down"), RECUSE_CHANNEL="dead")
    status = notified.run("recuse", "notify", "status", "--json")
    assert status.returncode == 11
    states = {one["channel"]: one for one in json.loads(status.stdout)["channels"]}
    assert (states["mail"]["state"], states["dead"]["state"]) == ("ok", "dead")
    assert states["dead"]["waiting"] >= 3
    doctor = notified.run("recuse", "doctor")
    assert "notices dead" in doctor.stdout and " waiting, the oldest for " in doctor.stdout


def test_killed_notifier_and_agent_lose_no_notice(notified: Host) -> None:
    with watching(notified, sessions=2, logins=2):
        notified.run("systemctl kill --kill-whom=main -s KILL recuse-notify", check=True)
        notified.ssh("dave", "true")
        notified.run("systemctl kill --kill-whom=main -s KILL recuse-agent", check=True)
        notified.ssh("dave", "true")
    receiver = Receiver(notified)
    try:
        seen = {receiver.wait("mail")[0]["id"]}
        while len(seen) < 2:
            seen.add(receiver.wait("mail")[0]["id"])
    finally:
        receiver.close()


def test_it_reads_neither_recordings_nor_keys(notified: Host) -> None:
    pid = notified.run("systemctl show -P MainPID recuse-notify", check=True).stdout.strip()
    inside = f"nsenter -t {pid} -m setpriv --reuid recuse-notify --regid recuse-notify"
    inside += " --groups $(id -g recuse-ship) "
    assert notified.run(inside + "cat /var/lib/recuse/ledger/checkpoint").returncode == 0
    for path in (
        "/var/spool/recuse/out", "/var/lib/recuse-ship", "/var/lib/recuse-central",
        "/var/lib/recuse/host.key",
    ):  # fmt: skip
        seen = notified.run(inside + f"sh -c 'ls {path}/* || cat {path}'")
        assert seen.returncode != 0 and seen.stdout == "", path


def test_users_may_not_ask(notified: Host) -> None:
    shown = notified.run("su -s /bin/sh alice -c 'recuse notify status'")
    assert shown.returncode == 8, shown.stdout + shown.stderr
    assert notified.run("su -s /bin/sh alice -c 'cat /etc/recuse/notify.toml'").returncode != 0
