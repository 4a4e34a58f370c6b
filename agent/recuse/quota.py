"""Limits of a user: how much of all their recordings is kept in a time, and lies there at once.

Part of the agent. Each relay keeps to what it is told; here the allowance of a user is dealt out
among their sessions, anew whenever one begins and once a second while they grow. What a relay was
told holds though we are away, and what was spent is kept over a restart.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, Optional

from . import files, wire
from .config import SessionConfig
from .errors import SpoolError
from .live import LiveSession

if TYPE_CHECKING:
    from .agent import Agent

HORIZON_SECONDS = 60  # what is left of an allowance may be spent within this time
MANY = 32  # sessions of a user, of whom one more is no news to the others before the next look
_SLACK = 8  # relays are told anew when their share has changed by an eighth


@dataclass(frozen=True)
class Standing:
    """What one user's recordings are, all together."""

    sessions: int
    live: int  # bytes of what is live
    spent: int  # bytes of the allowance, what was earned since taken off

    def most(self, config: SessionConfig, room: int) -> int:
        """Say how much may be live: as much as is left to others, were nothing set."""
        half = max(0, room + self.live) // 2
        return min(half, config.user_live) if config.user_live else half

    def is_near(self, config: SessionConfig, room: int, tenths: int) -> bool:
        """Say whether so many tenths of one of the allowances are used."""
        volume = config.user_volume
        return self.live * 10 > self.most(config, room) * tenths or (
            volume > 0 and self.spent * 10 > volume * tenths
        )


def own_limits(config: SessionConfig) -> wire.Limits:
    """Give the limits of a session by itself."""
    action = wire.Action[config.on_limit.upper()]
    return wire.Limits(config.rate, config.burst, config.size, action, action)


def share_of(config: SessionConfig, standing: Standing, size: int, room: int) -> wire.Limits:
    """Say how one recording of a user may grow that has `size` bytes now.

    `room` is what the spool takes until it counts as full. Shares add up to no more than the
    allowance. Pure.
    """
    own, n = own_limits(config), max(1, standing.sessions)
    rate, burst = own.rate, own.burst
    left = max(0, standing.most(config, room) - standing.live)
    grown = max(1, size + left * (_SLACK - 1) // _SLACK // n)  # 0 would be no limit
    size_limit = min(own.size_limit or grown, grown)
    if config.user_volume:
        left = max(0, config.user_volume - standing.spent)
        a_second = config.user_volume // config.user_period + left // HORIZON_SECONDS
        rate = min(own.rate or a_second, max(1, a_second // n))
        burst = min(own.burst if own.rate else left, left // n)
    users = wire.Action[config.on_user_limit.upper()]
    if users == wire.Action.END and not standing.is_near(config, room, 9):
        users = wire.Action.SLOW  # its share is at an end, and the user's allowance is not
    return wire.Limits(
        rate,
        burst,
        size_limit,
        own.on_rate if (rate, burst) == (own.rate, own.burst) else users,
        own.on_size if size_limit == own.size_limit else users,
    )


def is_news(told: Optional[wire.Limits], now: wire.Limits, size: int) -> bool:
    """Say whether a relay has to hear of its share: not of each byte by which it changes."""
    if told is None or (told.on_rate, told.on_size) != (now.on_rate, now.on_size):
        return True
    pairs = (
        (told.rate, now.rate),
        (told.burst, now.burst),
        (told.size_limit - size, now.size_limit - size),
    )
    return any(new * _SLACK < old * (_SLACK - 1) or old * 2 < new for old, new in pairs)


class Quotas:
    """What each user has used, and what each relay was told."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._path = agent.paths.sessions / "usage"
        self._sizes: Dict[str, int] = {}  # of recordings, as far as they are spent
        self._told: Dict[str, wire.Limits] = {}
        self._spent: Dict[int, float] = {}
        self._as_of_ns = agent.kernel.now_ns()
        self._unsaved = False
        self._limited: Dict[int, bool] = {}  # users who are at their limit, and that was told

    def load(self) -> None:
        """Go on from what the agent before us kept; what makes no sense is not there."""
        odd = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with contextlib.suppress(OSError, *odd):
            told = json.loads(self._path.read_bytes())
            spent = {int(user): float(one) for user, one in told["spent"].items()}
            sizes = {str(name): int(one) for name, one in told["sizes"].items()}
            as_of_ns = int(told["as_of_ns"])
            if all(0 <= one < 1e18 for one in (*spent.values(), *sizes.values())):
                self._spent, self._sizes, self._as_of_ns = spent, sizes, as_of_ns

    def _save(self) -> None:
        self._unsaved = False
        told = {"spent": self._spent, "sizes": self._sizes, "as_of_ns": self._as_of_ns}
        with contextlib.suppress(OSError):  # then a restart is generous
            files.replace(self._path, json.dumps(told).encode(), durable=False)

    # -- what relays are told --------------------------------------------------------

    def begin(self, live: LiveSession) -> wire.Limits:
        """Give the limits that a session starts with; those of its user's others shrink."""
        user, config = user_of(live), self._agent.config.session
        others, room = [one for one in self._sessions_of(user) if one is not live], self._room()
        standing = self._standing(user, [*others, live])
        if len(others) < MANY:
            self._tell_all(others, standing, room)
        self._told[live.id] = share_of(config, standing, 0, room)
        return self._told[live.id]

    def look(self) -> None:
        """See how recordings have grown, and deal anew."""
        grown = False
        users: Dict[int, List[LiveSession]] = {}
        for live in self._agent.sessions.values():
            if live.recording is None or live.ended:
                continue
            users.setdefault(user_of(live), []).append(live)
            with contextlib.suppress(OSError, SpoolError):
                grown = self._grow(live, live.recording.size()) or grown
        self._earn()
        room = self._room()
        for user, sessions in users.items():
            standing = self._standing(user, sessions)
            self._tell_all(sessions, standing, room)
            self._tell_people(sessions[0], standing, room)
        if grown:
            self._save()

    def close(self, live: LiveSession, size: int) -> None:
        """Take the end of a recording in."""
        self._grow(live, size)
        self._sizes.pop(live.id, None)
        self._told.pop(live.id, None)
        self._unsaved = True

    def tidy(self) -> None:
        """Save what ends have changed: once for those of a second, not while a start waits."""
        if self._unsaved:
            self._save()

    def _tell_all(self, sessions: List[LiveSession], standing: Standing, room: int) -> None:
        config, news = self._agent.config.session, {}
        for live in sessions:
            size = self._sizes.get(live.id, 0)
            limits = share_of(config, standing, size, room)
            if is_news(self._told.get(live.id), limits, size):
                news[live.id] = limits
        if news:
            for name in self._agent.door.tell_each(news):
                self._told[name] = news[name]

    def _tell_people(self, live: LiveSession, standing: Standing, room: int) -> None:
        user, config = user_of(live), self._agent.config.session
        if standing.is_near(config, room, 9):
            if not self._limited.get(user):
                self._limited[user] = True
                self._agent.journal.write(
                    "user-limit", user=live.session.login.user, uid=user, live=standing.live,
                    spent=standing.spent, sessions=standing.sessions,
                    proceeding=config.on_user_limit,
                )  # fmt: skip
        elif not standing.is_near(config, room, 5):
            self._limited.pop(user, None)

    # -- what there is ---------------------------------------------------------------

    def _sessions_of(self, user: int) -> List[LiveSession]:
        return [
            live
            for live in self._agent.sessions.values()
            if live.recording is not None and not live.ended and user_of(live) == user
        ]

    def _standing(self, user: int, sessions: List[LiveSession]) -> Standing:
        live = sum(self._sizes.get(one.id, 0) for one in sessions)
        return Standing(len(sessions), live, round(self._spent.get(user, 0.0)))

    def _grow(self, live: LiveSession, size: int) -> bool:
        grown = max(0, size - self._sizes.get(live.id, 0))
        if grown:
            self._sizes[live.id] = size
            user = user_of(live)
            self._spent[user] = self._spent.get(user, 0.0) + grown
        return grown > 0

    def _earn(self) -> None:
        """Give back what the time since has earned."""
        now_ns, config = self._agent.kernel.now_ns(), self._agent.config.session
        passed = max(0, now_ns - self._as_of_ns) / 1e9
        self._as_of_ns = now_ns
        earned = config.user_volume / config.user_period * passed
        left = {user: spent - earned for user, spent in self._spent.items()}
        self._spent = {user: spent for user, spent in left.items() if spent > 0}

    def _room(self) -> int:
        try:
            return max(0, self._agent.spool.free() - self._agent.config.spool.min_free)
        except OSError:
            return 0


def user_of(live: LiveSession) -> int:
    """Say whose recording it is: who logged in, whoever they became since."""
    login = live.session.login
    return login.uid if login.auid is None else login.auid
