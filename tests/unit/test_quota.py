"""How the allowance of a user is dealt out among their recordings."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import wire
from recuse.config import SessionConfig
from recuse.quota import Standing, is_news, own_limits, share_of

MIB = 1 << 20
CONFIG = SessionConfig(
    rate=8 * MIB, burst=256 * MIB, size=4096 * MIB, user_live=1000 * MIB, user_volume=800 * MIB,
    user_period=800,
)  # fmt: skip
MUCH = 1 << 50


def test_who_has_used_nothing_has_what_a_session_has() -> None:
    config = replace(CONFIG, user_live=0, user_volume=0)
    assert share_of(config, Standing(1, 0, 0), 0, MUCH) == own_limits(config)


@given(
    sizes=st.lists(st.integers(0, 300 * MIB), min_size=1, max_size=40),
    room=st.integers(0, MUCH),
    spent=st.integers(0, 1 << 40),
)
def test_shares_are_no_more_than_the_allowance(sizes: List[int], room: int, spent: int) -> None:
    standing = Standing(len(sizes), sum(sizes), spent)
    shares = [share_of(CONFIG, standing, size, room) for size in sizes]
    grown = sum(max(one.size_limit, size) for one, size in zip(shares, sizes))
    most = standing.most(CONFIG, room)
    assert grown <= max(most, standing.live) + len(sizes)  # 1 byte each: 0 would be no limit
    assert all(one.size_limit > 0 and one.rate > 0 for one in shares)
    assert sum(one.burst for one in shares) <= max(0, CONFIG.user_volume - spent)
    left = max(0, CONFIG.user_volume - spent)
    assert sum(one.rate for one in shares) <= MIB + left // 60 + len(sizes)


def test_others_keep_half_of_what_is_free() -> None:
    config = replace(CONFIG, user_live=0, size=0)
    taken, room = 0, 1000 * MIB
    for _ in range(100):  # somebody who always takes all they may
        share = share_of(config, Standing(1, taken, 0), taken, room)
        room -= max(0, share.size_limit - taken)
        taken = max(taken, share.size_limit)
    assert 480 * MIB < taken <= 500 * MIB
    other = share_of(config, Standing(1, 0, 0), 0, room)
    assert other.size_limit > 200 * MIB


def test_spent_allowance_leaves_what_is_earned() -> None:
    share = share_of(CONFIG, Standing(4, 0, 900 * MIB), 0, MUCH)
    assert (share.rate, share.burst, share.on_rate) == (MIB // 4, 0, wire.Action.SLOW)


@pytest.mark.parametrize(
    "live, spent, action",
    [
        (0, 0, wire.Action.SLOW),
        (899 * MIB, 0, wire.Action.SLOW),
        (901 * MIB, 0, wire.Action.END),
        (0, 719 * MIB, wire.Action.SLOW),
        (0, 721 * MIB, wire.Action.END),
    ],
)
def test_sessions_end_when_the_allowance_does_and_not_when_a_share_does(
    live: int, spent: int, action: wire.Action
) -> None:
    config = replace(CONFIG, on_user_limit="end")
    share = share_of(config, Standing(9, live, spent), live // 9, MUCH)
    assert (share.on_rate, share.on_size) == (action, action)


def test_share_that_is_a_sessions_own_limit_has_its_action() -> None:
    config = replace(CONFIG, on_limit="gap", size=MIB, user_volume=0)
    assert share_of(config, Standing(1, 0, 0), 0, MUCH) == own_limits(config)


@pytest.mark.parametrize(
    "settings, on_rate, on_size",
    [
        ({"rate": MIB, "burst": MIB}, wire.Action.GAP, wire.Action.SLOW),  # as a host has it
        ({"rate": 0, "size": MIB}, wire.Action.SLOW, wire.Action.GAP),
    ],
)
def test_limit_of_the_user_does_not_change_what_the_other_one_does(
    settings: Dict[str, int], on_rate: wire.Action, on_size: wire.Action
) -> None:
    config = replace(SessionConfig(on_limit="gap"), **settings)  # type: ignore[arg-type]
    share = share_of(config, Standing(1, 0, 0), 0, 77 << 30)
    assert (share.on_rate, share.on_size) == (on_rate, on_size)


@pytest.mark.parametrize(
    "told, now, expected",
    [
        (None, wire.Limits(1, 1, 1), True),
        (wire.Limits(800, 800, 900), wire.Limits(701, 701, 802), False),
        (wire.Limits(800, 800, 900), wire.Limits(699, 800, 900), True),
        (wire.Limits(800, 800, 900), wire.Limits(800, 699, 900), True),
        (wire.Limits(800, 800, 900), wire.Limits(800, 800, 798), True),
        (wire.Limits(800, 800, 900), wire.Limits(1600, 1600, 1600), False),
        (wire.Limits(800, 800, 900), wire.Limits(1601, 800, 900), True),
        (wire.Limits(8, 8, 900), wire.Limits(8, 8, 900, wire.Action.END), True),
        (wire.Limits(8, 8, 900), wire.Limits(8, 8, 900, on_size=wire.Action.END), True),
    ],
)
def test_relays_hear_of_what_matters(
    told: wire.Limits, now: wire.Limits, expected: bool
) -> None:
    assert is_news(told, now, 100) == expected
