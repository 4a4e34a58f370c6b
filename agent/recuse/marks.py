"""What the lines of a recording say besides what was shown. Pure.

The spool enters it with each segment and with the close; verification reads it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import List, Optional, Union

from .records import GAP_CAUSES, Gap

MAX_GAPS = 100  # listed in one close entry; more are joined by stream and cause

# Each is held against the beginning of a line: to look for lines of a kind in all of a flood costs
# more than to compress it.
_EVENT = re.compile(rb'\[\s*([0-9]+(?:\.[0-9]+)?)\s*,\s*"(.)"')
_EXIT = re.compile(rb'\[[^,]*,\s*"x"\s*,\s*"(-?[0-9]{1,5})"\s*\]\Z')
_GAP = re.compile(
    rb'\[[^,]*,\s*"g"\s*,\s*"stream=([oie]) bytes=([0-9]{1,19})'
    rb"(?: sha256=([0-9a-f]{64}))?(?: lines=([0-9]{1,19}))?"
    rb' cause=(%b)"\s*\]\Z' % "|".join(GAP_CAUSES).encode()
)
_UNFILTERED = re.compile(
    rb'\[[^,]*,\s*"m"\s*,\s*"recuse recorder unfiltered: ([^"\\]{1,99})"\s*\]\Z'
)
# What is shown has no quote that is not escaped.
_SAYS = re.compile(rb'"(?:[gx]"\s*,|m"\s*,\s*"recuse recorder unfiltered)')


@dataclass
class Marks:
    """What the lines of one segment say; times in seconds, None without events."""

    t0: Optional[float] = None
    t1: Optional[float] = None
    events: int = 0
    replaced: int = 0  # events whose exact bytes are in a line of their own
    gaps: List[Gap] = field(default_factory=list)
    exit_status: Optional[int] = None
    unfiltered: Optional[str] = None  # why its relay has no filter of system calls

    def read(self, plain: Union[bytes, bytearray]) -> None:
        """Read the next whole lines, however many, in one pass."""
        first = last = b""
        end = -1
        while end < len(plain):
            start, end = end + 1, plain.find(b"\n", end + 1)  # split() takes ten times as long
            end = len(plain) if end < 0 else end
            match = _EVENT.match(plain, start, end)
            if match is None:
                end = plain.find(b"\n[", end)
                if end < 0:
                    break
                continue
            time, code = match.groups()
            if code == b"b":
                self.replaced += 1
                continue
            self.events += 1
            first, last = first or time, time
            if code == b"g":
                found = _GAP.match(plain, start, end)
                if found is not None:
                    stream, size, digest, lines, cause = (p.decode() for p in found.groups(b""))
                    count = int(lines) if lines else None
                    self.gaps.append(Gap(cause, stream, int(size), digest, count))
            elif code == b"x":
                found = _EXIT.match(plain, start, end)
                if found is not None:
                    self.exit_status = int(found.group(1))
            elif code == b"m":
                found = _UNFILTERED.match(plain, start, end)
                if found is not None:
                    self.unfiltered = found.group(1).decode()
        if first:
            self.t0 = float(first) if self.t0 is None else self.t0
            self.t1 = float(last)


def read_marks(plain: bytes) -> Marks:
    """Read all lines of a segment."""
    marks = Marks()
    marks.read(plain)
    return marks


def says_nothing(plain: bytes) -> bool:
    """Say whether lines have no gap, no exit and nothing on a filter: ten times quicker."""
    return _SAYS.search(plain) is None


def add_gap(gaps: List[Gap], gap: Gap) -> None:
    """Add one to those of a recording; what is beyond MAX_GAPS is joined."""
    if len(gaps) < MAX_GAPS:
        gaps.append(gap)
        return
    for at, other in enumerate(gaps):
        if (other.cause, other.stream) == (gap.cause, gap.stream):
            lines = None if gap.lines is None else gap.lines + (other.lines or 0)
            gaps[at] = Gap(gap.cause, gap.stream, other.bytes + gap.bytes, "", lines)
            return
    gaps.append(gap)
