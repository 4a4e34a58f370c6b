"""The collector over TLS, spoken to by hand: what it refuses, and how it says so."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Optional, Tuple

import aiohttp
import pytest
from central import PATIENCE_S, PREFIX, Central, client_ssl, root_that_cannot_give, scenario
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recuse import checkpoint as tlog
from recuse import collector, collector_cli, files, httpsig
from recuse import store as storing
from recuse.errors import CollectorError

ORIGIN = PREFIX + "/1"
HOST = tlog.Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
UPLOAD = tlog.Signer(PREFIX, Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32))
STRANGER = tlog.Signer(PREFIX, Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32))
ENTRIES = [b"entry %d" % n for n in range(8)]
BLOB = b"a blob"
DIGEST = hashlib.sha256(BLOB).hexdigest()

Answer = Tuple[int, Dict[str, str], bytes]


def note(size: int, entries: Optional[List[bytes]] = None, key: tlog.Signer = HOST) -> bytes:
    leaves = [tlog.leaf_hash(entry) for entry in (entries or ENTRIES)[:size]]
    return tlog.sign_note(tlog.Checkpoint(ORIGIN, size, tlog.tree_root(leaves)).body(), key)


class Client:
    """Signs and sends one request at a time, or what a test makes of it."""

    def __init__(self, central: Central) -> None:
        self._central = central

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        key: tlog.Signer = UPLOAD,
        keyid: str = ORIGIN,
        skew_s: int = 0,
        sent: Optional[bytes] = None,
        at: Optional[str] = None,
        change: Callable[[Dict[str, str]], object] = lambda headers: None,
    ) -> Answer:
        created = int(time.time()) + skew_s
        signed = httpsig.sign_request(method, path, httpsig.OCTETS, body, keyid, created, key.sign)
        headers = dict(signed)
        change(headers)
        connector = aiohttp.TCPConnector(ssl=client_ssl(self._central.cert), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.request(
                method,
                self._central.url + (at or path),
                data=io.BytesIO(body if sent is None else sent),
                headers=headers,
                skip_auto_headers=["Content-Type"],
            ) as response:
                return response.status, dict(response.headers), await response.read()

    async def put(self, **options: Any) -> Answer:
        return await self.send("PUT", httpsig.blob_path(DIGEST), BLOB, **options)

    async def append(self, size: int, start: int = 0, **options: Any) -> Answer:
        body = httpsig.pack_append(options.pop("note", note(size)), ENTRIES[start:size])
        return await self.send("POST", httpsig.host_path(ORIGIN, "append"), body, **options)

    async def stage(self, start: int, entries: List[bytes], **options: Any) -> Answer:
        path = httpsig.host_path(ORIGIN, f"stage/{start}")
        return await self.send("POST", path, tlog.pack_bundle(entries), **options)


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    made = Central(tmp_path / "central", request_seconds=PATIENCE_S)
    made.store.enrol_local(PREFIX, HOST.vkey, UPLOAD.vkey)
    yield made
    made.store.close()


def talk(central: Central, story: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        await central.start()
        try:
            await story(Client(central))
        finally:
            await central.stop()

    scenario(run)


def test_blob_is_stored_once(central: Central) -> None:
    async def story(client: Client) -> None:
        first, again = await client.put(), await client.put()
        assert (first[0], again[0]) == (201, 200)
        assert first[2] == again[2]
        storing.check_blob_receipt(first[2], ORIGIN, DIGEST, central.store.vkey)
        assert central.store.blob(DIGEST) == BLOB

    talk(central, story)


def test_append_answers_as_documented(central: Central) -> None:
    async def story(client: Client) -> None:
        status, headers, receipt = await client.append(3)
        assert status == 200
        storing.check_append_receipt(receipt, note(3), central.store.vkey)
        assert (await client.append(3))[2] == receipt
        status, headers, body = await client.append(8, 5)
        assert (status, headers["Content-Type"], body) == (
            409, "text/x.tlog.size; charset=utf-8", b"3\n",
        )  # fmt: skip
        assert (await client.append(8, 2))[0] == 200
        assert (await client.append(5))[0] == 409
        path = httpsig.host_path(ORIGIN, "checkpoint")
        status, _, newest = await client.send("GET", path)
        assert status == 200 and tlog.Checkpoint.parse(tlog.Note.parse(newest).text).size == 8

    talk(central, story)


def test_stage_answers_with_the_next_index(central: Central) -> None:
    async def story(client: Client) -> None:
        path = httpsig.host_path(ORIGIN, "checkpoint")
        assert (await client.send("GET", path))[0] == 204
        assert (await client.stage(0, ENTRIES[:4]))[2] == b"4\n"
        assert (await client.stage(6, ENTRIES[6:]))[::2] == (409, b"4\n")
        assert (await client.stage(2, ENTRIES[2:6]))[2] == b"6\n"
        assert (await client.send("GET", path))[0] == 204
        assert (await client.append(8, 6))[0] == 200
        assert [e for _, e, _ in central.store.entries(ORIGIN)] == ENTRIES

    talk(central, story)


def drop(name: str) -> Callable[[Dict[str, str]], object]:
    return lambda headers: headers.pop(name)


def put_in(name: str, old: str, new: str) -> Callable[[Dict[str, str]], object]:
    def change(headers: Dict[str, str]) -> None:
        assert old in headers[name]
        headers[name] = headers[name].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"key": STRANGER}, 401),
        ({"key": HOST}, 401),
        ({"keyid": "example.com/recuse/host/h2/1"}, 404),
        ({"keyid": PREFIX}, 404),
        ({"keyid": "x"}, 404),
        ({"sent": b"b blob"}, 401),
        ({"sent": b""}, 401),
        ({"at": httpsig.blob_path("0" * 64)}, 401),
        ({"at": httpsig.blob_path(DIGEST) + "?x=1"}, 401),
        ({"at": "//v1/blobs/sha-256/" + DIGEST}, 404),
        ({"at": httpsig.blob_path(DIGEST.upper())}, 404),
        ({"at": "/v1/blobs/sha-256/../sha-256/" + DIGEST}, 404),
        ({"change": drop("Signature")}, 401),
        ({"change": drop("Signature-Input")}, 401),
        ({"change": drop("Content-Digest")}, 401),
        ({"change": drop("Content-Type")}, 401),
        ({"change": put_in("Content-Type", "octet", "other")}, 401),
        ({"change": put_in("Signature-Input", "recuse-v1", "recuse-v2")}, 401),
        ({"change": put_in("Signature-Input", ' "content-type"', "")}, 401),
        ({"change": put_in("Signature-Input", "keyid=", "keyid=x")}, 401),
        ({"skew_s": 3600}, 401),
        ({"skew_s": -3600}, 401),
    ],
)
def test_a_request_that_is_not_signed_right_is_refused(
    central: Central, options: Dict[str, Any], status: int
) -> None:
    async def story(client: Client) -> None:
        if "at" in options and ".." in options["at"]:
            assert await status_of_path(central, options["at"]) in (401, 404)
            return
        found, headers, body = await client.put(**options)
        assert found == status, body
        assert headers["Content-Type"].startswith("application/problem+json")
        problem = json.loads(body)
        assert problem["status"] == status and problem["detail"]
        assert central.store.blob(DIGEST) is None

    talk(central, story)


async def raw_status(central: Central, request: str) -> int:
    """Send what a client library would not, and read the answer as it comes."""
    context = client_ssl(central.cert)
    reader, writer = await asyncio.open_connection("127.0.0.1", central.port, ssl=context)
    writer.write(request.encode())
    status = int((await asyncio.wait_for(reader.readline(), PATIENCE_S / 2)).split()[1])
    writer.close()
    await writer.wait_closed()
    return status


async def status_of_path(central: Central, path: str) -> int:
    """Send a path that a client library would tidy up."""
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return await raw_status(central, head)


async def status_of_part(central: Central, key: tlog.Signer, body: str) -> int:
    """Send a request that somebody signed, and of its body no more than that."""
    path = httpsig.blob_path(DIGEST)
    headers = httpsig.sign_request(
        "PUT", path, httpsig.OCTETS, BLOB, ORIGIN, int(time.time()), key.sign
    )
    lines = [f"PUT {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(BLOB)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return await raw_status(central, "\r\n".join([*lines, "", body]))


def test_a_wrong_clock_is_told_the_time(central: Central) -> None:
    async def story(client: Client) -> None:
        began = int(time.time())
        status, headers, _ = await client.put(skew_s=-3600)
        assert status == 401
        assert began <= parsedate_to_datetime(headers["Date"]).timestamp() <= time.time()

    talk(central, story)


def test_a_stranger_is_refused_before_the_body(central: Central) -> None:
    """The body never comes; the answer does."""

    async def story(client: Client) -> None:
        assert await status_of_part(central, STRANGER, "") == 401

    talk(central, story)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\0\0\0", 400),
        (b"\xff\xff\xff\xff" + note(1), 400),
        (httpsig.pack_append(note(1), [b"x"])[:-1], 400),
        (httpsig.pack_append(note(1), [b"x"]) + b"\0", 400),
        (httpsig.pack_append(b"garbage", []), 403),
        (httpsig.pack_append(note(1, key=STRANGER), ENTRIES[:1]), 403),
        (httpsig.pack_append(note(2), [b"forged", b"root"]), 422),
        (httpsig.pack_append(note(1), ENTRIES[:2]), 422),
        (bytes((1 << 20) + 1), 413),
    ],
    ids=["empty", "short", "cut-note", "cut-entry", "trailing", "garbage", "stranger", "forged",
         "too-many", "too-large"],
)  # fmt: skip
def test_an_append_that_proves_nothing_is_refused(
    central: Central, body: bytes, status: int
) -> None:
    async def story(client: Client) -> None:
        found = await client.send("POST", httpsig.host_path(ORIGIN, "append"), body)
        assert found[0] == status, found[2]
        assert central.store.head(ORIGIN) is None

    talk(central, story)


def test_the_path_of_another_host_is_refused(central: Central) -> None:
    async def story(client: Client) -> None:
        path = httpsig.host_path(PREFIX + "/2", "append")
        body = httpsig.pack_append(note(1), ENTRIES[:1])
        assert (await client.send("POST", path, body))[0] == 404

    talk(central, story)


def test_a_replay_changes_nothing(central: Central) -> None:
    async def story(client: Client) -> None:
        assert (await client.append(3))[0] == 200
        assert (await client.append(8, 3))[0] == 200
        assert (await client.append(3))[::2] == (409, b"8\n")
        assert len(list(central.store.entries(ORIGIN))) == 8
        assert central.findings == []

    talk(central, story)


def test_a_fork_is_found_and_refused(central: Central, caplog: pytest.LogCaptureFixture) -> None:
    async def story(client: Client) -> None:
        assert (await client.append(3))[0] == 200
        other = [b"other 1", b"other 2", b"other 3"]
        body = httpsig.pack_append(note(3, other), other)
        found = await client.send("POST", httpsig.host_path(ORIGIN, "append"), body)
        assert found[::2] == (409, b"3\n")
        assert [finding.kind for finding in central.findings] == ["fork"]

    talk(central, story)
    collector.log_finding(central.findings[0])
    assert caplog.records[-1].levelno == logging.CRITICAL


def test_a_body_that_never_ends_is_given_up(tmp_path: Path) -> None:
    central = Central(tmp_path / "central", request_seconds=0.2)
    central.store.enrol_local(PREFIX, HOST.vkey, UPLOAD.vkey)

    async def story(client: Client) -> None:
        assert await status_of_part(central, UPLOAD, "a b") == 503

    talk(central, story)
    central.store.close()


def test_a_fault_of_ours_is_500_and_logged(
    central: Central, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise IndexError("not thought of")

    async def story(client: Client) -> None:
        monkeypatch.setattr(central.store, "store_blob", fail)
        status, _, body = await client.put()
        assert status == 500 and b"thought" not in body
        assert any("not thought of" in one.exc_text for one in caplog.records if one.exc_text)
        monkeypatch.undo()
        assert (await client.put())[0] == 201

    talk(central, story)


def test_a_full_disk_is_503_and_told_once_and_when_it_is_over(
    central: Central, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "recuse-collector")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", str(args[0]))

    async def story(client: Client) -> None:
        monkeypatch.setattr(files, "replace", full)
        for _ in range(3):
            status, _, body = await client.put()
            assert status == 503 and b"space" not in body and b"detail" in body
        monkeypatch.undo()
        for _ in range(2):
            assert (await client.put())[0] in (200, 201)
        told = [one.message for one in caplog.records if "store" in one.message]
        assert len(told) == 2 and not any(one.exc_info for one in caplog.records)
        assert str(central.store.path) in told[0] and "df " in told[0]
        assert told[1] == "the store can be used again"

    talk(central, story)


# enrolment


def enrolment(central: Central, **changed: Any) -> bytes:
    request = {
        "token": central.store.new_token(),
        "host": "example.com/recuse/host/h2",
        "host_vkey": HOST.vkey,
        "upload_vkey": UPLOAD.vkey,
    }
    request.update(changed)
    return json.dumps({k: v for k, v in request.items() if v is not None}).encode()


@pytest.mark.parametrize(
    ("changed", "options", "status"),
    [
        ({}, {}, 200),
        ({"token": "0" * 64}, {}, 403),
        ({"token": None}, {}, 400),
        ({"token": 3}, {}, 400),
        ({"token": "\ud800"}, {}, 400),  # half a character, which nothing can look up
        ({"more": "x"}, {}, 400),
        ({"host": "example.com/recuse/host/h3"}, {}, 401),
        ({"upload_vkey": STRANGER.vkey}, {}, 401),
        ({"upload_vkey": "x"}, {}, 401),
        ({"host_vkey": "x"}, {}, 401),
        ({}, {"skew_s": 3600}, 401),
    ],
)
def test_enroll_answers_as_documented(
    central: Central, changed: Dict[str, Any], options: Dict[str, Any], status: int
) -> None:
    async def story(client: Client) -> None:
        body = enrolment(central, **changed)
        found = await client.send(
            "POST", "/v1/enroll", body, keyid="example.com/recuse/host/h2", **options
        )
        assert found[0] == status, found[2]
        assert len(central.store.hosts()) == (2 if status == 200 else 1)
        if status == 200:
            assert json.loads(found[2]) == {"collector": central.store.vkey}

    talk(central, story)


def test_enroll_takes_only_its_own_organisation(tmp_path: Path) -> None:
    central = Central(tmp_path / "central", org="example.net")

    async def story(client: Client) -> None:
        for org, status in (("example.com", 403), ("example.net/x", 403), ("example.net", 200)):
            host = f"{org}/recuse/host/h2"
            body = enrolment(central, host=host)
            assert (await client.send("POST", "/v1/enroll", body, keyid=host))[0] == status

    talk(central, story)
    central.store.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100000], ids=["", "list", "cut", "deep"])
def test_enroll_with_garbage_is_refused(central: Central, body: bytes) -> None:
    async def story(client: Client) -> None:
        found = await client.send("POST", "/v1/enroll", body, keyid=PREFIX)
        assert found[0] == 400

    talk(central, story)


def test_status_says_who_we_are(central: Central) -> None:
    async def story(client: Client) -> None:
        status, _, body = await client.send("GET", "/v1/status")
        assert status == 200 and json.loads(body)["collector"] == central.store.vkey

    talk(central, story)


# TLS


def test_old_tls_and_strangers_certificates_are_refused(central: Central) -> None:
    context = collector.tls_context(central.cert, central.key)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(CollectorError) as caught:
        collector.tls_context(central.cert, central.cert)
    assert caught.value.hint == "make one with: recuse-collector init"


def test_a_port_that_is_taken_is_reported(central: Central) -> None:
    async def story(client: Client) -> None:
        other = collector.Server(collector.Service(central.store), None)
        with pytest.raises(CollectorError):
            await other.start("127.0.0.1", central.port)

    talk(central, story)


# the command


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "collector.toml"
    # No connection takes a port of that address meanwhile, as it may of 127.0.0.1.
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    path.write_text(
        'org = "example.com"\n'
        f'[listen]\nhost = "127.0.0.2"\nport = {port}\n'
        f'[tls]\ncert = "{tmp_path}/c.crt"\nkey = "{tmp_path}/c.key"\n'
        f'[store]\npath = "{tmp_path}/store"\n'
    )
    return path


def run(config: Path, *arguments: str) -> int:
    return collector_cli.main(["--config", str(config), *arguments])


def test_init_makes_everything_once(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "init", "--name", "collector.example", "--name", "192.0.2.1") == 0
    assert "example.com/recuse/collector+" in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "c.key").stat().st_mode) == 0o600
    kept = {name: (tmp_path / name).read_bytes() for name in ("c.crt", "c.key", "store/store.key")}
    assert run(config, "init", "--name", "other.example") == 0
    assert kept == {name: (tmp_path / name).read_bytes() for name in kept}
    shown = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "c.crt", "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:collector.example" in shown and "IP Address:192.0.2.1" in shown


def test_init_makes_a_certificate_for_a_key_that_has_none(config: Path, tmp_path: Path) -> None:
    run(config, "init", "--name", "localhost")
    key = (tmp_path / "c.key").read_bytes()
    (tmp_path / "c.crt").unlink()
    assert run(config, "init", "--name", "localhost") == 0
    assert (tmp_path / "c.key").read_bytes() == key
    collector.tls_context(tmp_path / "c.crt", tmp_path / "c.key")


@pytest.mark.parametrize("key", [b"no key", b""])
def test_init_leaves_a_key_that_it_cannot_use(
    config: Path, tmp_path: Path, key: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.key").write_bytes(key)
    assert run(config, "init", "--name", "localhost") == 9
    assert f"key {tmp_path}/c.key cannot be used" in capsys.readouterr().err
    assert (tmp_path / "c.key").read_bytes() == key and not (tmp_path / "c.crt").exists()


def test_init_gives_the_service_its_store_if_that_failed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = root_that_cannot_give(monkeypatch)
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(CollectorError, match=f"{store}: Input/output error"):
        collector_cli._make_for_service(store)
    collector_cli._make_for_service(store)
    assert given == [store] * 2
    (store / "store.db").touch()
    collector_cli._make_for_service(store)
    assert given == [store] * 2


@pytest.mark.parametrize("command", ["token", "hosts", "status"])
def test_commands_without_a_store_say_what_to_do(
    config: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, command) == 9
    assert "recuse-collector init" in capsys.readouterr().err


def test_token_hosts_and_status(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config, "init", "--name", "localhost")
    capsys.readouterr()
    assert run(config, "token", "h1") == 0
    token = capsys.readouterr().out.strip()
    store = storing.Store(tmp_path / "store")
    store.enrol(token, PREFIX, HOST.vkey, UPLOAD.vkey)
    store.append(ORIGIN, note(3), ENTRIES[:3])
    assert run(config, "status") == 0
    assert "1 host, 3 entries, 0 findings" in capsys.readouterr().out
    assert run(config, "hosts", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["host"] == PREFIX and row["ledgers"][0]["entries"] == 3
    with pytest.raises(storing.Conflict):
        store.append(ORIGIN, note(3, [b"x"] * 3), [b"x"] * 3)
    store.close()
    assert run(config, "status", "--json") == 10
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "fork"


def test_bad_configuration_is_named_with_its_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[listen]\nport = 0\nports = 3\n")
    assert run(config, "status") == 3
    error = capsys.readouterr().err
    assert f"{config}:2" in error and f"{config}:3" in error


def test_serve_runs_answers_reloads_and_stops(config: Path, tmp_path: Path) -> None:
    run(config, "init", "--name", "localhost")
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(PATIENCE_S)
    command = [sys.executable, "-m", "recuse.collector_cli", "--config", str(config), "serve"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert notify.recv(100) == b"READY=1"
        port = int(config.read_text().split("port = ")[1].split()[0])
        context = client_ssl(tmp_path / "c.crt")
        with socket.create_connection(("127.0.0.2", port), PATIENCE_S) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                tls.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert tls.recv(4096).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert next(line for line in lines if "loaded again" in line).startswith("<6>")
        process.send_signal(signal.SIGTERM)
        assert notify.recv(100) == b"STOPPING=1"
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.communicate()
        notify.close()
