"""What the journal tells an administrator."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator
from typing import Callable, Dict

import pytest
from accounts import RULES, agent_stopped, enable, event, watching
from host import CLIENT, CLIENTS, TOP, Host
from test_booted_coverage import bypass

FIELDS = (
    "RECUSE_SESSION RECUSE_LOGIN RECUSE_SEQ RECUSE_VERDICT RECUSE_RULE RECUSE_REASON"
    " RECUSE_USER RECUSE_UID RECUSE_SERVICE RECUSE_SOURCE"
).split()


def test_exempt_sessions_are_one_query_away(host: Host) -> None:
    cursor = host.cursor()
    with watching(host, sessions=2, logins=2) as seen:
        host.ssh("dave", "true")
        host.ssh("alice", "true")
    found = host.journal(RECUSE_VERDICT="exempt", after=cursor)
    assert found
    assert {entry["RECUSE_USER"] for entry in found} == {"dave"}
    entry = host.journal(event("exempt"), after=cursor)[0]
    assert [name for name in FIELDS if name not in entry] == []
    assert entry["SYSLOG_IDENTIFIER"] == "recuse-agent"
    assert entry["PRIORITY"] == "5"
    assert entry["RECUSE_UID"] == "1003"
    assert CLIENT in entry["RECUSE_SOURCE"]
    assert "handles patient data" in entry["MESSAGE"]
    row = next(row for row in seen.sessions if row["user"] == "dave")
    assert entry["RECUSE_SESSION"] == row["session"]
    assert entry["RECUSE_SEQ"] == str(row["seq"])


def test_outcome_of_every_session_is_in_the_journal(host: Host) -> None:
    cursor = host.cursor()
    with watching(host) as seen, host.login("alice", "true") as terminal:
        terminal.wait()
    closed = host.journal(event("closed"), after=cursor)
    assert [entry["RECUSE_SESSION"] for entry in closed] == [seen.session["session"]]
    assert closed[0]["RECUSE_OUTCOME"] == "recorded"
    # A recording needs no reason, and perhaps no rule.
    assert {*FIELDS, "RECUSE_TTY"} - set(closed[0]) <= {"RECUSE_RULE", "RECUSE_REASON"}
    assert closed[0]["RECUSE_TTY"].startswith("pts/") or "/dev/pts" in closed[0]["RECUSE_TTY"]


def test_catalog_explains_each_event(host: Host) -> None:
    with watching(host):
        host.ssh("dave", "true")
    told = host.run("journalctl", "-x", "--no-pager", event("exempt"), check=True).stdout
    assert "░░ Subject:" in told
    listed = host.run("journalctl", "--list-catalog", check=True).stdout
    from recuse.journal import EVENTS

    ids = set(re.findall(r"[0-9a-f]{32}", listed))
    assert [e.kind for e in EVENTS.values() if e.message_id not in ids] == []


def test_content_of_sessions_is_never_in_the_journal(host: Host) -> None:
    with watching(host), host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo wort-9182")
        terminal.line("exit 0")
        terminal.wait()
    assert "wort-9182" not in host.run("journalctl", "--no-pager", "-o", "verbose").stdout


# -- the queries of docs/journal.md, as they stand there

QUERY = re.compile(r"^## (\d+\. [^\n]+)\n\n```sh\n(journalctl [^\n]+)\n```\n", re.M)
QUERIES = dict(QUERY.findall((TOP / "docs/journal.md").read_text()))

Situation = Callable[[Host], "tuple[Dict[str, str], str, str]"]
"""Bring something about; give variables of the query, what it must tell, and what it must not."""

SITUATIONS: Dict[str, Situation] = {}
NOTHING = "nothing that is ever said"
NOTIFY = """
[channel.nobody]
type = "webhook"
url = "http://127.0.0.1:9/"
secret = "/etc/recuse/notify.d/nobody"
dead_after = 1

[[route]]
channels = ["nobody"]
"""
FAKE_COLLECTOR = """
import http.server, ssl, sys, time
from email.utils import formatdate

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response_only(401)
        self.send_header("Date", formatdate(time.time() + 3600, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_PUT = do_POST = do_GET
    def log_message(self, *words):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/recuse/collector.crt", "/etc/recuse/collector.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"""
FREE = "handles patient data"  # a reason of the rules, as long as there is no catalogue
REASONS = """
[reasons.private]
text.en = "private data on the screen"
"""
APPROVAL = """
[[allow]]
name = "short-and-private"
users = ["bob"]
reasons = ["private"]
longest = "1h"
budget = "4h"
auto = true
"""
OUT_OF_TURN = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
    s.connect("/run/recuse/host.sock")
    s.send(b"nonsense")
    s.recv(100)
"""


def situation(title: str) -> Callable[[Situation], Situation]:
    def keep(function: Situation) -> Situation:
        SITUATIONS[title] = function
        return function

    return keep


@pytest.fixture(scope="module")
def asked() -> Iterator[Host]:
    """A host of its own: some of what is brought about does not go away."""
    with Host() as host:
        enable(host)
        yield host


def test_page_has_a_situation_for_each_query() -> None:
    assert list(QUERIES) == list(SITUATIONS)
    assert len(QUERIES) >= 20


@pytest.mark.parametrize("title", QUERIES)
def test_query_of_the_page_answers_its_question(asked: Host, title: str) -> None:
    variables, tells, hides = SITUATIONS[title](asked)
    asked.run("journalctl", "--sync", check=True)
    words = "".join(f"{name}={shlex.quote(value)}; " for name, value in variables.items())
    shown = asked.run(f"{words}{QUERIES[title]}", check=True).stdout
    assert re.search(tells, shown), f"{QUERIES[title]}\n{shown}"
    assert not re.search(hides, shown), f"{QUERIES[title]}\n{shown}"


def reload_with(host: Host, *changes: "tuple[str, str]") -> None:
    for name, text in changes:
        host.write(name, text)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


@situation("1. Who was not recorded, and why?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host, sessions=2, logins=2):
        host.ssh("dave", "true")
        host.ssh("alice", "true")
    return {}, "of dave is exempt .* by rule dave-is-exempt: handles patient data", "alice"


@situation("2. Which logins and sessions were refused?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.ssh("erin", "true")
    return {}, "login of erin is refused by rule erin-is-out", "alice|dave"


@situation("3. What has a user done here?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    return {}, r"(?s)login l-\w+ of alice.*session s-\w+ of alice is recorded", "dave|erin"


@situation("4. Who came from an address?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host):
        host.ssh("bob", "true", source=CLIENTS[1])
    return {}, "of bob by sshd from 198.51.100.9:", "alice|dave"


@situation("5. What belongs to a login?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host) as seen:
        host.ssh("alice", "true")
    login = seen.session["login"]
    tells = rf"(?s)^(?=.*login {login} .*is recorded)(?=.*ended: recorded).*{login} of alice ended"
    return {"LOGIN": login}, tells, "dave"


@situation("6. What is known of a session?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host) as seen:
        host.ssh("alice", "true")
    session = seen.session["session"]
    return {"SESSION": session}, rf"(?s){session} .*recorded.*{session} .*ended", "login l-"


@situation("7. Whose outcome is not what it should be?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host) as seen:
        host.ssh("alice", "head -c 300000 /dev/zero")  # more than capture_bytes
    return {}, f"{seen.session['session']} of alice ended: partial", "ended: recorded"


@situation("8. Whose recorder was killed?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        host.run("kill -9 $(pgrep -u recuse)", check=True)
        terminal.wait()
    return {}, f"{seen.session['session']} of alice ended without its recorder", "dave"


@situation("9. What was recorded without the agent?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    cursor = host.cursor()
    with agent_stopped(host):
        host.ssh("carol", "true")
    host.wait_journal(event("adopted"), after=cursor)
    return {}, "of carol, begun without the agent, is adopted", "alice"


@situation("10. When did the policy change?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    more = RULES.replace('name = "', 'name = "b-')
    cursor = host.cursor()
    reload_with(host, ("/etc/recuse/policy.d/20-more.toml", more))
    digest = host.wait_journal(event("policy-changed"), after=cursor)[0]["RECUSE_POLICY"]
    return {}, rf"policy {digest} is in force, \d+ rules", "alice"


@situation("11. Was a policy or configuration bad?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    cursor = host.cursor()
    host.write("/etc/recuse/policy.d/20-more.toml", "[[rule]]\neffect = 'perhaps'\n")
    assert host.run("systemctl", "reload", "recuse-agent.service").returncode != 0
    host.wait_journal(event("policy-bad"), after=cursor)
    host.path("/etc/recuse/policy.d/20-more.toml").unlink()
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    return {}, r"bad policy, proceeding with the one in force: .*20-more.toml:\d", "alice"


@situation("12. What did one rule decide?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    return {}, "is exempt from recording by rule dave-is-exempt", "alice|erin"


@situation("13. Who became somebody else?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host, sessions=1, logins=2):
        host.ssh("alice", "sudo -u bob true")
    return {}, r"login l-\w+ of bob by sudo", "by sshd"


@situation("14. What is wrong with recuse itself?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    return {}, "bad policy, proceeding", "is recorded|is exempt"


@situation("15. Was the spool full?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    before, cursor = host.read("/etc/recuse/recuse.toml"), host.cursor()
    reload_with(host, ("/etc/recuse/recuse.toml", '[spool]\nmin_free = "900 TB"\n'))
    with watching(host):
        host.ssh("alice", "true")
    host.wait_journal(event("spool-full"), after=cursor)
    reload_with(host, ("/etc/recuse/recuse.toml", before))
    with watching(host):
        host.ssh("alice", "true")
    host.wait_journal(event("spool-free"), after=cursor)
    return {}, r"(?s)fewer than min_free: stub.*has room again", "alice"


@situation("16. What goes on after its session?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("tmux -f /dev/null new-session -d")
        terminal.line("exit")
        terminal.wait()
    host.run("pkill", "-u", "alice", "tmux")
    return {}, rf"tmux.* outlive session {seen.session['session']}", "dave"


@situation("17. Is the clock right?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.run("recuse-collector", "init", "--name", "localhost", check=True)
    host.run("cp /var/lib/recuse-collector/store.pub /etc/recuse/collector.pub", check=True)
    host.write("/root/collector.py", FAKE_COLLECTOR)
    host.run(
        "systemd-run", "--quiet", "--unit=fake-collector", "--property=Type=exec",
        "python3", "/root/collector.py", check=True,
    )  # fmt: skip
    host.wait_journal("_SYSTEMD_UNIT=fake-collector.service", MESSAGE="ready")
    url = '[central]\nurl = "https://localhost:8443"\nca = "/etc/recuse/collector.crt"\n'
    host.write("/etc/recuse/recuse.toml", url)
    cursor = host.cursor()
    host.run("systemctl", "restart", "recuse-ship", check=True)
    host.wait_journal("_SYSTEMD_UNIT=recuse-ship.service", "PRIORITY=4", after=cursor)
    return {}, r"clock here is -\d{4} s off that of https://localhost:8443", NOTHING


@situation("18. What is the trouble with the collector?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.wait_journal("_SYSTEMD_UNIT=recuse-ship.service", "PRIORITY=4", "PRIORITY=3", count=2)
    host.run("systemctl", "stop", "fake-collector", check=True)
    host.write("/etc/recuse/recuse.toml", "")
    host.run("systemctl", "restart", "recuse-ship", check=True)
    return {}, "https://localhost:8443 answers 401.* waiting, the oldest for", NOTHING


@situation("19. Was recuse switched off?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.run("recuse", "disable", check=True)
    host.run("recuse", "enable", check=True)
    return {}, r"(?s)logins do not go through recuse: .*logins go through recuse: ", "alice"


@situation("20. Who spoke to the agent out of turn?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.run("setpriv", "--reuid=recuse", "--regid=recuse", "--clear-groups",
             "python3", "-c", OUT_OF_TURN, check=True)  # fmt: skip
    return {}, r"process \d+ of uid \d+ is hung up on: ", "alice"


@situation("21. Was the ledger damaged or set back?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    cursor = host.cursor()
    with agent_stopped(host):
        bundle = host.path("/var/lib/recuse/ledger/tile/entries/000.part")
        data = bytearray(bundle.read_bytes())
        data[100] ^= 1
        bundle.write_bytes(bytes(data))
    host.wait_journal(event("started"), after=cursor)
    return {}, r"the ledger was damaged, local/recuse/host/\S+/2 begins", "alice"


@situation("22. Are admins told?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    secret = "whsec_" + base64.b64encode(bytes(32)).decode() + "\n"
    target = "/etc/recuse/notify.d/nobody"
    host.run(f"install -m 640 -g recuse-notify /dev/stdin {target}", input=secret, check=True)
    host.run("cat >/etc/recuse/notify.toml", input=NOTIFY, check=True)
    host.run("systemctl", "restart", "recuse-notify", check=True)
    host.run("systemctl", "restart", "recuse-agent", check=True)  # two entries
    host.wait_journal(event("channel-down"))
    return {}, r"channel nobody has delivered nothing for \d+ s, trying again: http://127", NOTHING


@situation("23. Who else has a session's terminal open?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    host.write("/home/carol/.ssh/rc", "sleep 60 <>$SSH_TTY >&0 2>&0 &\n")
    cursor = host.cursor()
    with watching(host, sessions=2), host.login("carol") as terminal:
        terminal.expect("> $")
        host.wait_journal(event("tty-held"), after=cursor)
        host.run("pkill", "-u", "carol", "sleep", check=True)
        terminal.line("exit")
        terminal.wait()
    host.path("/home/carol/.ssh/rc").unlink()
    return {}, r"the terminal of session s-\w+ is also open in .*sleep", "alice"


@situation("24. Which logins are missing in the ledger?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    before = host.read("/etc/pam.d/sshd"), host.read("/etc/nsswitch.conf")
    bypass(host)
    host.ssh("bob", "true")
    host.write("/etc/pam.d/sshd", before[0])
    host.write("/etc/nsswitch.conf", before[1])
    host.run("recuse", "doctor", "--coverage", "--settle", "0")
    return {}, "a login has no entry in the ledger: login of bob by sshd", "of alice"


@situation("25. When was the agent not there?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    cursor = host.cursor()
    host.run("systemctl", "restart", "recuse-agent.service", check=True)
    host.wait_journal(event("started"), after=cursor)
    return {}, r"(?s)recuse-agent stops, .*recuse-agent \S+ is ready", "alice"


@situation("26. What became of an exemption that was asked for?")
def _(host: Host) -> "tuple[Dict[str, str], str, str]":
    reload_with(
        host,
        ("/etc/recuse/policy.d/10-test.toml", REASONS + RULES.replace(FREE, "private")),
        ("/etc/recuse/approval.d/10-test.toml", APPROVAL),
    )
    line = "recuse request --reason private --why 'my own letters' --for 1h --json"
    with watching(host, sessions=2, logins=2) as seen:
        asked = host.ssh("bob", line)
        assert asked.returncode == 0, asked.stderr  # at once: what was reloaded is in force
        host.ssh("bob", "true")
    grant = json.loads(asked.stdout)["grant"]
    assert [row["grant"] for row in seen.sessions if row["outcome"] == "exempt"] == [grant]
    steps = ("bob asks for .*: private", "is granted until", "of bob is use 1 of 1 of grant")
    return {"GRANT": grant}, "(?s)" + ".*".join(steps), "alice|dave"
