"""Approvals that do not count and grants that do not hold, on a booted host.

Everything is done with the real programs: requests by recuse, signatures by ssh-keygen, those of
security keys by a provider in software, since a host in a container has no real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Sequence, Tuple

import pytest
from accounts import event, watching
from host import CLIENTS, Host
from office import (
    NAMESPACE,
    NAMESPACES,
    Grant,
    Result,
    approve,
    ask,
    by,
    granted,
    key_of,
    open_office,
    signers_line,
)
from preloading import Clock, build

SIGNERS = "/etc/recuse/approvers"
REVOKED = "/etc/recuse/revoked-keys"
KEYS = "/root/keys"
TOUCHED, UNTOUCHED, VERIFIED = f"{KEYS}/touched", f"{KEYS}/untouched", f"{KEYS}/verified"
PROVIDER = "/usr/local/lib/sk_provider.so"


def new_key(host: Host, name: str, kind: str = "ed25519", *options: str) -> str:
    """Make a key that is in nobody's home."""
    path = f"{KEYS}/{name}"
    host.run(
        "env", f"SSH_SK_PROVIDER={PROVIDER}", "setsid", "ssh-keygen", "-q", "-t", kind, "-N", "",
        "-f", path, *options, check=True, input="1234\n",
    )  # fmt: skip
    return path


def certified(host: Host, key: str, principals: str, *options: str) -> str:
    """Have the authority certify a copy of somebody's key; give what ssh-keygen signs with."""
    copy = f"{KEYS}/copy"
    host.run(f"rm -f {copy}*; cp {key} {copy}; cp {key}.pub {copy}.pub", check=True)
    words = ["ssh-keygen", "-q", "-s", f"{KEYS}/authority", "-I", "test", "-n", principals]
    host.run(*words, *options, f"{copy}.pub", check=True)
    return f"{copy}-cert.pub"


@pytest.fixture(scope="module")
def office(host: Host) -> Host:
    """The office, with more keys of its approvers, and some that are nobody's."""
    host.run(f"install -d -m 700 {KEYS}", check=True)
    open_office(host)
    build(host, "sk_provider.c", PROVIDER, "-l:libcrypto.so.3")
    for name in ("authority", "stranger", "outsider", "other", "past", "future"):
        new_key(host, name)
    for path, options in (
        (TOUCHED, ()), (UNTOUCHED, ("-O", "no-touch-required")),
        (VERIFIED, ("-O", "verify-required")),
    ):  # fmt: skip
        new_key(host, Path(path).name, "ed25519-sk", *options)
    add_signers(
        host,
        signers_line(host, "frank@example.org", f"{KEYS}/other"),
        *(signers_line(host, "heidi@example.org", one) for one in (TOUCHED, UNTOUCHED, VERIFIED)),
        signers_line(host, "heidi@example.org", f"{KEYS}/past", 'valid-before="20260101Z"'),
        signers_line(host, "heidi@example.org", f"{KEYS}/future", 'valid-after="20990101Z"'),
        signers_line(host, "mallory@example.org", f"{KEYS}/outsider"),
        signers_line(host, "*@example.org", f"{KEYS}/authority", "cert-authority"),
    )
    return host


def add_signers(host: Host, *lines: str) -> None:
    host.write(SIGNERS, host.read(SIGNERS) + "".join(lines))


@pytest.fixture(autouse=True)
def restored(office: Host) -> Iterator[None]:
    """Undo what a test did to the files that say whose signatures count."""
    signers = office.read(SIGNERS)
    yield
    office.write(SIGNERS, signers)
    office.path(REVOKED).unlink(missing_ok=True)


def signs(host: Host, key: str, asked: Grant, *options: str) -> Result:
    """Have `recuse approve` sign with a key; who runs it does not matter."""
    sign = ["recuse", "approve", asked["grant"], "--yes", "--key", key, *options]
    return host.run("env", f"SSH_SK_PROVIDER={PROVIDER}", *sign, input="1234\n")


def brings(host: Host, asked: Grant, key: str, text: str, namespace: str = NAMESPACE) -> Result:
    """Sign a text by hand, and bring that as an approval."""
    host.write("/root/text", text)
    host.run(
        f"rm -f /root/text.sig; ssh-keygen -Y sign -q -f {key} -n {namespace} /root/text",
        check=True,
    )  # fmt: skip
    return host.run("recuse", "approve", asked["grant"], "--signature", "/root/text.sig")


def outcome(host: Host, user: str = "alice", **login: str) -> str:
    """Log in, and tell what became of the session."""
    with watching(host) as seen:
        assert host.ssh(user, "true", **login).returncode == 0  # type: ignore[arg-type]
    return str(seen.session["outcome"])


# -- approvals that do not count -------------------------------------------------------


def git_commit(host: Host, asked: Grant) -> Result:
    """Take the signature of a commit whose message is the request."""
    host.write("/root/text", asked["request"])
    named = "-c user.name=heidi -c user.email=heidi@example.org -c gpg.format=ssh"
    host.run(
        f"rm -rf /root/repo && git init -q /root/repo && cd /root/repo && git {named}"
        f" -c user.signingkey={key_of('heidi')} commit -q -S --allow-empty -F /root/text &&"
        " git cat-file commit HEAD"
        " | sed -n '/^gpgsig /,/END SSH/{s/^gpgsig //;s/^ //;p}' >/root/text.sig",
        check=True,
    )  # fmt: skip
    return host.run("recuse", "approve", asked["grant"], "--signature", "/root/text.sig")


def own_key_twice_in_the_file(host: Host, asked: Grant) -> Result:
    add_signers(host, signers_line(host, "ivan@example.org", key_of("alice")))
    return by(host, "alice", "recuse", "approve", asked["grant"], "--yes")


def no_namespaces(host: Host, asked: Grant) -> Result:
    host.write(SIGNERS, host.read(SIGNERS).replace(f"{NAMESPACES} ", "", 1))
    return by(host, "heidi", "recuse", "approve", asked["grant"], "--yes")


def revoked_key(host: Host, asked: Grant) -> Result:
    host.write(REVOKED, host.read(f"{key_of('heidi')}.pub"))
    return by(host, "heidi", "recuse", "approve", asked["grant"], "--yes")


def over_another_request(host: Host, asked: Grant) -> Result:
    other = ask(host, "alice", "--uses", "5")
    ran = brings(host, asked, key_of("heidi"), other["request"])
    withdraw(host, other)
    return ran


def withdraw(host: Host, asked: Grant) -> None:
    ran = by(host, "alice", "recuse", "reject", asked["grant"])
    assert ran.returncode == 0 and "rejected" in ran.stdout, ran.stderr


Act = Callable[[Host, Grant], Result]
SELF = "asked for this, or it is for them: nobody approves their own"
NOT_COUNTED: Sequence[Tuple[str, int, str, Act]] = (
    ("own-key", 16, f"alice@example.org {SELF}",
     lambda host, asked: by(host, "alice", "recuse", "approve", asked["grant"], "--yes")),
    ("own-key-of-a-second-principal", 16, "is also that of alice@example.org",
     own_key_twice_in_the_file),
    ("own-key-certified-as-another", 16, f"alice@example.org {SELF}",
     lambda host, asked: signs(
         host, certified(host, key_of("alice"), "heidi@example.org"), asked)),
    ("certificate-of-several", 16, f"alice@example.org {SELF}",
     lambda host, asked: signs(
         host, certified(host, f"{KEYS}/stranger", "heidi@example.org,alice@example.org"), asked)),
    ("one-approver-twice", 16, "frank@example.org has approved already",
     lambda host, asked: by(host, "frank", "recuse", "approve", asked["grant"], "--yes")),
    ("one-approver-with-two-keys", 16, "frank@example.org has approved already",
     lambda host, asked: signs(host, f"{KEYS}/other", asked)),
    ("one-key-certified-as-another", 16, "that key has signed already, for frank@example.org",
     lambda host, asked: signs(
         host, certified(host, key_of("frank"), "heidi@example.org"), asked)),
    ("wrong-namespace", 14, f"is for namespace 'file', not '{NAMESPACE}'",
     lambda host, asked: brings(host, asked, key_of("heidi"), asked["request"], "file")),
    ("another-organisation", 14, "is for namespace 'recuse-grant@elsewhere', not",
     lambda host, asked: brings(
         host, asked, key_of("heidi"), asked["request"], "recuse-grant@elsewhere")),
    ("git-over-the-request", 14, f"is for namespace 'git', not '{NAMESPACE}'",
     lambda host, asked: brings(host, asked, key_of("heidi"), asked["request"], "git")),
    ("git-commit", 14, f"is for namespace 'git', not '{NAMESPACE}'", git_commit),
    ("altered-request", 14, "is not over these bytes",
     lambda host, asked: brings(
         host, asked, key_of("heidi"), asked["request"].replace('"uses": 1', '"uses": 5'))),
    ("another-request", 14, "is not over these bytes", over_another_request),
    ("security-key-not-touched", 14, "nobody touched security key SHA256:",
     lambda host, asked: signs(host, UNTOUCHED, asked)),
    ("namespaces-missing", 16, f"{SIGNERS}:1: no namespaces=", no_namespaces),
    ("key-revoked", 14, "is revoked", revoked_key),
    ("key-expired", 14, "that key does not count any more",
     lambda host, asked: signs(host, f"{KEYS}/past", asked)),
    ("key-not-yet-valid", 14, "that key does not count yet",
     lambda host, asked: signs(host, f"{KEYS}/future", asked)),
    ("certificate-expired", 14, "certificate has expired",
     lambda host, asked: signs(
         host, certified(host, f"{KEYS}/stranger", "heidi@example.org", "-V", "20250101:20250201"),
         asked)),
    ("unknown-key", 14, f"is not in {SIGNERS}",
     lambda host, asked: signs(host, f"{KEYS}/stranger", asked)),
    ("no-approver", 16, "mallory@example.org is in none of the groups that approve: leads",
     lambda host, asked: signs(host, f"{KEYS}/outsider", asked)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words", "act"),
    [pytest.param(*more, id=name) for name, *more in NOT_COUNTED],
)
def test_approval_that_does_not_count(office: Host, code: int, words: str, act: Act) -> None:
    """One is missing, and this one is not it: the login after it is recorded."""
    asked = ask(office, "alice")
    assert approve(office, "frank", asked)["missing"] == 1
    cursor = office.cursor()
    ran = act(office, asked)
    assert words in ran.stderr and ran.returncode == code, ran.stdout + ran.stderr
    told = office.wait_journal(event("approval-refused"), after=cursor, RECUSE_GRANT=asked["grant"])
    assert words in told[0]["MESSAGE"]
    assert outcome(office) == "recorded"
    shown = office.json("recuse", "show", asked["grant"], "--json")
    assert isinstance(shown, dict)
    assert (shown["state"], shown["missing"]) == ("pending", 1)
    assert [one["principal"] for one in shown["approvals"]] == ["frank@example.org"]
    withdraw(office, asked)


def test_security_key_has_to_verify_where_the_policy_says_so(office: Host) -> None:
    asked = ask(office, "alice", "--reason", "sealed")
    for key, words in (
        (key_of("heidi"), "without PIN or finger"),
        (TOUCHED, "without PIN or finger"),
        (UNTOUCHED, "nobody touched security key"),
    ):
        ran = signs(office, key, asked)
        assert ran.returncode and words in ran.stderr, ran.stderr
    ran = signs(office, VERIFIED, asked)
    assert ran.returncode == 0 and "granted" in ran.stdout, ran.stderr
    assert outcome(office) == "exempt"


# -- approvals that count --------------------------------------------------------------


def by_agent(host: Host, asked: Grant) -> Result:
    """Sign with a key that only ssh-agent has."""
    script = (
        f'cp {key_of("heidi")} k; cp {key_of("heidi")}.pub k.pub; ssh-add -q k; rm k;'
        f' exec recuse approve {asked["grant"]} --yes --key k.pub'
    )
    return by(host, "heidi", "sh", "-ec", f'cd "$(mktemp -d)"; exec ssh-agent sh -ec "{script}"')


COUNTED: Sequence[Tuple[str, Act]] = (
    ("certificate",
     lambda host, asked: signs(
         host, certified(host, f"{KEYS}/stranger", "heidi@example.org"), asked)),
    ("security-key-touched", lambda host, asked: signs(host, TOUCHED, asked)),
    ("security-key-with-pin", lambda host, asked: signs(host, VERIFIED, asked)),
    ("ssh-agent", by_agent),
)  # fmt: skip


@pytest.mark.parametrize("act", [pytest.param(act, id=name) for name, act in COUNTED])
def test_approval_that_counts(office: Host, act: Act) -> None:
    asked = ask(office, "alice")
    assert approve(office, "frank", asked)["missing"] == 1
    ran = act(office, asked)
    assert ran.returncode == 0 and "granted" in ran.stdout, ran.stderr
    assert [outcome(office), outcome(office)] == ["exempt", "recorded"]


# -- grants that do not hold -----------------------------------------------------------


def unused(host: Host, grant: Grant, words: str, login: Callable[[], str]) -> None:
    """Assert that a login is recorded, and that the journal says why its grant is not used."""
    cursor = host.cursor()
    assert login() == "recorded"
    (told,) = host.wait_journal(event("grant-unused"), after=cursor, RECUSE_GRANT=grant["grant"])
    assert words in told["MESSAGE"], told["MESSAGE"]


def end(host: Host, grant: Grant) -> None:
    ran = by(host, "heidi", "recuse", "revoke", grant["grant"])
    assert ran.returncode == 0, ran.stderr


def revoke_heidis_key(host: Host) -> None:
    host.write(REVOKED, host.read(f"{key_of('heidi')}.pub"))


def forget_heidi(host: Host) -> None:
    lines = host.read(SIGNERS).splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("heidi@")]
    host.write(SIGNERS, "".join(kept))


def forget_namespaces(host: Host) -> None:
    host.write(SIGNERS, host.read(SIGNERS).replace(f"{NAMESPACES} ", "", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(revoke_heidis_key, "only 1 of 2 approvals hold: heidi@", id="key-revoked"),
        pytest.param(forget_heidi, "only 1 of 2 approvals hold: heidi@", id="approver-gone"),
        pytest.param(forget_namespaces, f"{SIGNERS}:1: no namespaces=", id="namespaces-missing"),
    ],
)
def test_grant_whose_approvals_hold_no_more(
    office: Host, change: Callable[[Host], None], words: str
) -> None:
    grant = granted(office, "alice")
    change(office)
    unused(office, grant, words, lambda: outcome(office))
    end(office, grant)


def test_grant_for_sessions_from_another_place(office: Host) -> None:
    grant = granted(office, "alice", "--from", CLIENTS[1])
    words = f"it is for sessions from {CLIENTS[1]}"
    unused(office, grant, words, lambda: outcome(office))
    assert outcome(office, source=CLIENTS[1]) == "exempt"


def test_grant_of_another_user(office: Host) -> None:
    grant = granted(office, "alice")
    assert outcome(office, "bob") == "recorded"

    def become() -> str:
        """Log in as dave, who is exempt and knows alice's password."""
        with watching(office, sessions=2, logins=2) as seen, office.login("dave") as terminal:
            terminal.run("true")
            terminal.line("su alice -c true; exit")
            terminal.expect("Password: ")
            terminal.line("pw-alice")
            assert terminal.wait() == 0
        (inner,) = [one for one in seen.sessions if one["user"] == "alice"]
        return str(inner["outcome"])

    unused(office, grant, "logged in and became them", become)
    end(office, grant)


def test_grant_that_was_revoked(office: Host) -> None:
    grant = granted(office, "bob", "--uses", "2")
    assert outcome(office, "bob") == "exempt"
    end(office, grant)
    ran = by(office, "heidi", "recuse", "approve", grant["grant"], "--yes")
    assert ran.returncode == 16 and "is revoked: nothing is to be approved" in ran.stderr
    again = by(office, "heidi", "recuse", "revoke", grant["grant"])
    assert again.returncode == 16 and "is revoked: there is nothing to revoke" in again.stderr
    with watching(office) as seen, office.login("bob") as terminal:
        terminal.expect(f"grant {grant['grant']} for bob was revoked by heidi")
        terminal.line("exit")
        terminal.wait()
    assert seen.session["outcome"] == "recorded"


# -- other hosts, and other times ------------------------------------------------------


def test_grant_of_another_host(office: Host) -> None:
    """Two hosts with the same users and approvers: what was granted on one is none on the other,
    which can check what it was used for all the same."""
    with Host() as there:
        there.write("/etc/recuse/recuse.toml", '[host]\nname = "db2"\n')
        there.run("systemctl", "restart", "recuse-agent.service", check=True)
        there.run("recuse", "enable", check=True)
        open_office(there)
        for name in ("alice", "frank", "heidi"):
            for half in ("", ".pub"):
                there.copy_in(office.path(key_of(name) + half), key_of(name) + half)
        there.write(SIGNERS, office.read(SIGNERS))
        grant = granted(there, "alice")
        exported = there.run("recuse", "grant", "export", grant["grant"], check=True).stdout
        office.write("/root/grant.json", exported)
        ran = office.run("recuse", "grant", "import", "/root/grant.json")
        words = "it is for host db2, and this is testhost"
        assert ran.returncode == 16 and words in ran.stderr, ran.stderr
        office.write("/root/grant.json", exported.replace("db2", "testhost"))
        ran = office.run("recuse", "grant", "import", "/root/grant.json")
        assert ran.returncode == 14 and "is not over these bytes" in ran.stderr, ran.stderr
        assert outcome(office) == "recorded"
        assert [outcome(there), outcome(there)] == ["exempt", "recorded"]

        # The auditor's machine has the ledger, the host's public key and the file of approvers.
        there.run("recuse", "sync", check=True)
        there.run("cp -r /var/lib/recuse-central /var/lib/recuse/host.pub /root", check=True)
        there.run("tar -C /root -cf /root/copy.tar recuse-central host.pub", check=True)
        office.copy_in(there.path("/root/copy.tar"), "/root/copy.tar")
    office.run("mkdir /root/audit && tar -C /root/audit -xf /root/copy.tar", check=True)
    check = ["recuse", "verify", "--dir", "/root/audit/recuse-central"]
    check += ["--key", "/root/audit/host.pub", "--approvers"]
    good = office.run(*check, SIGNERS)
    assert good.returncode == 0, good.stdout + good.stderr
    office.write("/root/others", signers_line(office, "heidi@example.org", f"{KEYS}/stranger"))
    bad = office.run(*check, "/root/others")
    assert bad.returncode == 10 and grant["grant"] in bad.stdout, bad.stdout + bad.stderr


def test_grant_holds_in_its_time_and_a_clock_set_back_does_not_bring_it_back() -> None:
    """On a host of its own: what its ledger says of the time afterwards is of use to no test."""
    with Host() as host:
        host.run("recuse", "enable", check=True)
        open_office(host)
        clock = Clock(host)
        hour = 3600
        begin = host.run("date -u -d '+1 hour' +%FT%TZ", check=True).stdout.strip()
        grant = granted(host, "alice", "--begin", begin, "--uses", "5")
        waiting = ask(host, "alice")
        unused(host, grant, "it is not valid yet", lambda: outcome(host))
        clock.step(3 * hour // 2)
        clock.restart()
        assert outcome(host) == "exempt"
        late = by(host, "frank", "recuse", "approve", waiting["grant"], "--yes")
        assert late.returncode == 16 and "is expired: nothing is to be approved" in late.stderr
        clock.step(3 * hour)
        clock.restart()
        assert outcome(host) == "recorded"
        shown = host.json("recuse", "show", grant["grant"], "--json")
        assert isinstance(shown, dict)
        assert (shown["state"], shown["left"]) == ("expired", 4)
        clock.step(3 * hour // 2)
        clock.restart()
        unused(host, grant, "the clock was set back by 5", lambda: outcome(host))
