"""notify.toml: what it may say, and every fault with its line."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import List

import pytest

from recuse import notifyconf
from recuse.errors import ConfigError
from recuse.notifyconf import NotifyConfig, load

TOP = Path(__file__).resolve().parents[2]
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
GOOD = """\
[channel.mail]
type = "smtp"
host = "mail.example.org"
sender = "recuse@example.org"
to = ["security@example.org"]

[channel.siem]
type = "webhook"
url = "https://siem.example.org/recuse"
secret = "/etc/recuse/notify.d/siem"

[[route]]
channels = ["mail", "siem"]
"""


def faults(tmp_path: Path, text: str) -> List[str]:
    path = tmp_path / "notify.toml"
    path.write_text(text)
    try:
        load(path)
    except ConfigError as error:
        return [str(fault).replace(f"{tmp_path}/", "") for fault in error.faults]
    return []


def test_no_file_means_no_channel(tmp_path: Path) -> None:
    assert load(tmp_path / "notify.toml") == NotifyConfig({}, ())


def test_good_configuration_is_read_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "notify.toml").write_text(GOOD)
    found = load(tmp_path / "notify.toml")
    assert found.channels["mail"].smtp_port == 587
    assert (found.channels["siem"].max_age, found.channels["siem"].rate) == (604800, 60)
    assert found.routes[0].channels == ("mail", "siem")


def test_shipped_file_is_valid_as_it_is_and_with_everything_in_it(tmp_path: Path) -> None:
    text = (TOP / "packaging/etc/notify.toml").read_text()
    assert faults(tmp_path, text) == []
    lines = [line[1:] if line[:1] == "#" and line[1:2] not in (" ", "") else line
             for line in text.splitlines()]  # fmt: skip
    assert faults(tmp_path, "\n".join(lines)) == []
    assert set(load(tmp_path / "notify.toml").channels) == {"mail", "siem"}


def test_example_of_the_manual_page_is_valid(tmp_path: Path) -> None:
    page = (TOP / "docs/man/recuse-notify.toml.5").read_text()
    example = page.partition(".Bd -literal\n")[2].partition(".Ed\n")[0]
    assert faults(tmp_path, example) == []
    assert len(load(tmp_path / "notify.toml").routes) == 3


def test_every_key_is_documented() -> None:
    import dataclasses

    page = (TOP / "docs/man/recuse-notify.toml.5").read_text()
    words = set(page.split())
    for table in (notifyconf.Channel, notifyconf._RouteTable):
        assert {one.name for one in dataclasses.fields(table)} <= words


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (('type = "smtp"', 'type = "pigeon"'), "2: unknown value 'pigeon' for 'type'"),
        (('type = "smtp"\n', ""), "1: channel 'mail' has no type"),
        (('host = "mail.example.org"\n', ""), "1: channel 'mail' of type smtp needs 'h"),
        (('host = "', 'hots = "'), "3: unknown key 'hots'; did you mean 'host'?"),
        (('host = "mail.example.org"', 'url = "https://x"'), "3: 'url' is not for channe"),
        (('"security@example.org"', '"a@b@c"'), "5: 'a@b@c' is no mail address"),
        (('"security@example.org"', '"a@b.c, d@e.f"'), "5: 'a@b.c, d@e.f' is no mail"),
        (('"security@example.org"', '"a@b.c\\nBcc: d@e.f"'), "5: "),
        (('["security@example.org"]', "[]"), "1: channel 'mail' of type smtp needs 'to'"),
        (("[channel.mail]", "[channel.Mail]"), "1: 'Mail' is no name of a channel"),
        (("[channel.mail]", '[channel."../x"]'), "1: '../x' is no name of a channel"),
        (("https://siem", "http://siem"), "9: 'url' must be https:, or http: on this"),
        (("https://siem", "https://u:geheim@siem"), "9: 'url' may have neither a user"),
        (("https://siem.example.org/recuse", "https://"), "9: 'url' is not of the form"),
        (("https://siem.example.org/recuse", "https://[x"), "9: 'url' is not of the fo"),
        (('secret = "/etc', 'secret = "etc'), "10: 'etc/recuse/notify.d/siem' is no abs"),
        (('"mail", "siem"', '"mail", "sime"'), "13: there is no channel 'sime'; did you"),
        (('"mail", "siem"', '"siem"'), "1: no route leads to channel 'mail'"),
        (('channels = ["mail", "siem"]', ""), "12: the route leads to no channel"),
        (("[[route]]", "[route]"), "12: 'route' must be tables"),
        (("[channel.mail]", "[chanel.mail]"), "1: unknown key 'chanel'; did you mean"),
    ],
    ids=str,
)  # fmt: skip
def test_fault_is_reported_with_its_line(
    tmp_path: Path, change: "tuple[str, str]", wanted: str
) -> None:
    assert change[0] in GOOD
    found = faults(tmp_path, GOOD.replace(*change))
    assert any(one.startswith(f"notify.toml:{wanted}") for one in found), found
    assert "geheim" not in "".join(found)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('kinds = ["exmpt"]', "'exmpt' is no kind of entry; did you mean 'exempt'?"),
        ('kinds = ["!exmpt"]', "'exmpt' is no kind of entry"),
        ('kinds = ["ex*", "grant", "pause", "undelivered"]', ""),
        ('outcomes = ["gone"]', "'gone' is no outcome"),
        ('severity = "bad"', "unknown value 'bad' for 'severity'"),
        ("fold = -1", "'fold' must be 0 to 86400"),
        ('fold = "5 minutes"', "is no duration"),
        ('users = "dave"', "'users' must be a list of strings"),
        ('name = ""', "is no name of a route"),
    ],
)
def test_fault_of_a_route_is_reported(tmp_path: Path, line: str, wanted: str) -> None:
    found = faults(tmp_path, GOOD + line + "\n")
    assert any(wanted in one and "notify.toml:14" in one for one in found) if wanted else not found


def test_password_is_not_sent_in_the_clear_but_to_this_host(tmp_path: Path) -> None:
    more = 'tls = "none"\ncredentials = "/c"\n'
    text = GOOD.replace('host = "mail.example.org"\n', 'host = "mail.example.org"\n' + more)
    assert faults(tmp_path, text) == ["notify.toml:5: a password is not sent without TLS"]
    assert faults(tmp_path, text.replace("mail.example.org", "localhost")) == []


@pytest.mark.parametrize("garbage", ["[", "channel = 3", "channel.x = 3", "route = [1]",
                                     "\0", "[channel]\nmail = []", "[[channel]]"])  # fmt: skip
def test_nonsense_is_a_fault_and_nothing_else(tmp_path: Path, garbage: str) -> None:
    assert faults(tmp_path, garbage)


# -- secrets


def test_secrets_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"# new\n{SECRET}\n\n {SECRET} \n")
    path.chmod(0o640)
    assert notifyconf.read_secrets(path) == [b"k" * 32] * 2


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (SECRET, 0o644, "lets everybody at a secret"),
        ("", 0o600, "nothing is in it"),
        ("# geheim", 0o600, "nothing is in it"),
        (f"{SECRET}\ngeheim", 0o600, "secret 2: no secret of the form"),
        ("whsec_Z2VoZWlt", 0o600, "secret 1: the secret has 6 bytes"),
    ],
)
def test_bad_secret_is_refused_without_being_shown(
    tmp_path: Path, content: str, mode: int, why: str
) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        notifyconf.read_secrets(path)
    told = str(caught.value.faults[0])
    assert why in told and str(path) in told
    assert "geheim" not in told and "Z2Vo" not in told


def test_secret_that_is_not_there_or_no_file_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, why in ((tmp_path / "x", "no such file"), (tmp_path / "pipe", "not a regular"),
                      (tmp_path, "is a directory")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            notifyconf.read_secrets(path)
        assert why in str(caught.value.faults[0])


@pytest.mark.parametrize("content", ["user", "user\npass\nmore"])
def test_credentials_are_two_lines(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        notifyconf.read_credentials(path)
    path.write_text("user\np w\n")
    assert notifyconf.read_credentials(path) == ("user", "p w")


def test_loopback_is_recognised() -> None:
    assert [host for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "10.0.0.1",
                              "localhost.evil", "") if notifyconf.is_loopback(host)] == [
        "localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"
    ]  # fmt: skip


