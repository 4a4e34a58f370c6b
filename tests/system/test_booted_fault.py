"""Faults at random moments: nothing that was shown is missing, and nobody is locked out.

What the rounds do is in storm.py; `make faults` plays a thousand of them.
"""

from __future__ import annotations

import os
import random
import secrets

from host import Host
from storm import Storm

SEED = int(os.environ.get("RECUSE_FAULT_SEED", "0")) or secrets.randbelow(1 << 32)
ROUNDS = 24
AT_ONCE = 8


def test_kills_at_random_moments_lose_nothing(host: Host) -> None:
    print(f"RECUSE_FAULT_SEED={SEED}")  # the same again with it in the environment
    storm = Storm(host, random.Random(SEED))
    for _ in range(ROUNDS // AT_ONCE):
        storm.play(AT_ONCE)
    storm.check()
