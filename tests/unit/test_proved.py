"""A user's own entries with their proofs: whatever is changed on the way is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from recuse import keys, records
from recuse.checkpoint import Verifier
from recuse.ledger import Ledger
from recuse.policy import Decision
from recuse.proved import check
from some_entries import some_facts

NOW = 1_763_860_004_123_456_789
ORIGIN = "org/recuse/host/h1/1"
HOST = records.Host(ORIGIN, "h1", "m" * 32, "boot", "Debian", "0.1.0")
FACTS = some_facts(user="ann")
RECORD = Decision("record", None, "record", None, None, None, None, "d" * 64, (), FACTS)
Handed = List[Dict[str, Any]]


def login(number: int, uid: int = 1000) -> records.Login:
    name = records.new_id("l", bytes([number]) * records.ID_BYTES)
    return records.Login(
        name, "ann", uid, uid, 7, "sshd", records.Source(), "ssh", None, 812, NOW
    )


@pytest.fixture
def handed(tmp_path: Path) -> Tuple[Handed, Verifier]:
    signer = keys.load_or_create(tmp_path / "host.key", ORIGIN)
    with Ledger.open(tmp_path / "ledger", signer, NOW) as ledger:
        for number in range(5):
            entry = records.login_entry(HOST, number, NOW, login(number), RECORD)
            ledger.append([entry])
        ledger.append([records.login_entry(HOST, 5, NOW, login(5, 1001), RECORD)])
        ledger.checkpoint()
        raw = list(ledger.entries())
        proofs = ledger.prove_all(range(7))
        assert proofs[6] is None and ledger.prove(2) == proofs[2]
        found = [
            {"entry": one.decode(), "proof": (proof or b"").decode()}
            for one, proof in zip(raw, proofs)
        ]
        return found, Verifier.parse(ledger.vkey)


def test_own_entries_are_proved(handed: Tuple[Handed, Verifier]) -> None:
    entries, key = handed
    checked = check(entries[:5], key, 1000)
    assert (checked.faults, checked.entries, checked.size) == ([], 5, 6)
    assert checked.origin == ORIGIN and checked.to_json()["ok"] is True


def test_nothing_handed_out_is_nothing_proved(handed: Tuple[Handed, Verifier]) -> None:
    assert check([], handed[1], 1000).to_json()["entries"] == 0


def _swap(entries: Handed) -> None:
    entries[0]["entry"], entries[1]["entry"] = entries[1]["entry"], entries[0]["entry"]


CHANGES: Dict[str, Tuple[Callable[[Handed], object], str]] = {
    "altered": (lambda e: e[0].update(entry=e[0]["entry"].replace("ann", "eve")), "entry 1"),
    "swapped": (_swap, "entry 2"),
    "proof-cut": (lambda e: e[3].update(proof=e[3]["proof"][:40]), "proof: "),
    "no-proof": (lambda e: e[3].pop("proof"), "has no entry, or no proof"),
    "no-object": (lambda e: e.__setitem__(3, "x"), "is no object"),  # type: ignore[call-overload]
    "number": (lambda e: e[3].update(proof=e[3]["proof"].replace("index 3", "index 4")), "entry 4"),
    "surrogate": (lambda e: e[3].update(entry="\udce4"), "entry 4"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_named(handed: Tuple[Handed, Verifier], name: str) -> None:
    entries, key = handed[0][:5], handed[1]
    change, words = CHANGES[name]
    change(entries)
    checked = check(entries, key, 1000)
    assert checked.faults and words in "; ".join(checked.faults)
    assert checked.entries == 5 - len(checked.faults)


def test_entry_of_somebody_else_is_a_fault(handed: Tuple[Handed, Verifier]) -> None:
    assert "of another user" in check(handed[0], handed[1], 1000).faults[0]


def test_another_hosts_key_proves_nothing(
    handed: Tuple[Handed, Verifier], tmp_path: Path
) -> None:
    for name in (ORIGIN, "org/recuse/host/h2/1"):
        other = keys.load_or_create(tmp_path / f"{len(name)}.key", name).verifier
        assert len(check(handed[0][:5], other, 1000).faults) == 5
