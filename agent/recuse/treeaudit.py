"""The tree of a ledger as it can be recomputed, and which entries are not in their place.

Pure. What the heads that were signed say is compared here; what follows from it, audit says.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .checkpoint import EMPTY_ROOT, TILE_WIDTH, Checkpoint, Frontier, tree_root


@dataclass
class Head:
    """A tree head that somebody signed, to be compared with what is there."""

    what: str
    checkpoint: Checkpoint
    signed: bool
    computed: Optional[bytes] = None
    stored: Optional[bytes] = None

    @property
    def entries_hold(self) -> bool:
        """Say whether the entries as they stand have that root."""
        return self.computed == self.checkpoint.root

    @property
    def hashes_hold(self) -> bool:
        """Say whether what should stand there has that root."""
        return self.stored == self.checkpoint.root


def _runs(numbers: Iterable[int]) -> List[Tuple[int, int]]:
    runs: List[Tuple[int, int]] = []
    for one in sorted(numbers):
        if runs and runs[-1][1] == one - 1:
            runs[-1] = (runs[-1][0], one)
        else:
            runs.append((one, one))
    return runs


def _longest_increasing(numbers: Sequence[int]) -> Set[int]:
    """Find which numbers can stay if as few as possible are out of order."""
    tails: List[int] = []
    tail_at: List[int] = []
    before: List[int] = []
    for at, one in enumerate(numbers):
        place = bisect.bisect_left(tails, one)
        before.append(tail_at[place - 1] if place else -1)
        if place == len(tails):
            tails.append(one)
            tail_at.append(at)
        else:
            tails[place] = one
            tail_at[place] = at
    kept: Set[int] = set()
    at = tail_at[-1] if tail_at else -1
    while at >= 0:
        kept.add(numbers[at])
        at = before[at]
    return kept


class Tree:
    """Recomputes the tree, from the entries as they stand and from what should stand there.

    The latter is the stored leaf hash, or the entry that says that it belongs there.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.places = 0
        self.total = 0
        self.holes: Dict[int, Optional[bytes]] = {}
        self.altered: Dict[int, str] = {}
        self.displaced: List[Tuple[int, int]] = []
        """(place, number the entry there gives itself)"""
        self.strange = 0
        """Entries that cannot be read or belong to another ledger."""
        self.tile_roots: List[Tuple[Optional[bytes], Optional[bytes]]] = []
        self._heads = heads
        self._computed: Optional[Frontier] = Frontier()
        self._stored: Optional[Frontier] = Frontier()
        self._chunk: Tuple[List[bytes], List[bytes]] = ([], [])
        for head in heads:
            if head.checkpoint.size == 0:
                head.computed = head.stored = EMPTY_ROOT

    def push(
        self,
        place: int,
        computed: Optional[bytes],
        stored: Optional[bytes],
        moved: Mapping[int, bytes],
    ) -> None:
        """Take in the next place, which may leave others out; `moved` is what belongs there."""
        for hole in range(self.places, place):
            self._push(hole, None, moved.get(hole))
        self._push(place, computed, stored)

    def _push(self, place: int, computed: Optional[bytes], stored: Optional[bytes]) -> None:
        self.places = place + 1
        if computed is None:
            self.holes[place] = stored
            self._computed = None
        else:
            self.total = place + 1
            if self._computed is not None:
                self._computed.push(computed)
        if stored is None:
            self._stored = None
        elif self._stored is not None:
            self._stored.push(stored)
        for leaves, one in zip(self._chunk, (computed, stored)):
            if one is not None:
                leaves.append(one)
        if self.places % TILE_WIDTH == 0:
            roots = [
                tree_root(leaves) if len(leaves) == TILE_WIDTH else None for leaves in self._chunk
            ]
            self.tile_roots.append((roots[0], roots[1]))
            self._chunk = ([], [])
        for head in self._heads:
            if head.checkpoint.size == self.places:
                head.computed = self._computed.root() if self._computed else None
                head.stored = self._stored.root() if self._stored else None

    def missing(self, upto: int) -> List[Tuple[int, int]]:
        """Find runs of entries, below `upto` or with a leaf hash, that stand nowhere."""
        held = {number for _, number in self.displaced}
        wanted = {place for place, _ in self.displaced if place < upto}
        wanted |= {place for place, leaf in self.holes.items() if place < upto or leaf is not None}
        runs = _runs(wanted - held)
        # Not as a set: a checkpoint that nobody signed can say any size.
        first = self.places
        for one in [*sorted(number for number in held if first <= number < upto), upto]:
            if first < one:
                if runs and runs[-1][1] == first - 1:
                    first = runs.pop()[0]
                runs.append((first, one - 1))
            first = one + 1
        return runs

    def swapped(self) -> List[Tuple[int, int]]:
        """Find pairs of entries that stand in each other's place."""
        holds = dict(self.displaced)
        return [(a, b) for a, b in self.displaced if a < b and holds.get(b) == a]

    def misplaced(self) -> List[Tuple[int, int]]:
        """Find entries out of order, those of swapped pairs aside; (place, number)."""
        in_pairs = {one for pair in self.swapped() for one in pair}
        rest = [(place, number) for place, number in self.displaced if number not in in_pairs]
        kept = _longest_increasing([number for _, number in rest])
        found = [(place, number) for place, number in rest if number not in kept]
        # Entries come late behind one that was put in, and early behind one that was taken out.
        # The former must have been named; or else nothing explains it.
        if not found and not self.repeated() and not self.strange:
            found = [(place, number) for place, number in rest if place > number]
        return found

    def repeated(self) -> List[Tuple[int, int]]:
        """Find entries that stand in their own place and in another as well; (place, number)."""
        vacated = {place for place, _ in self.displaced}
        found: List[Tuple[int, int]] = []
        seen: Set[int] = set()
        for place, number in self.displaced:
            at_home = number < self.total and number not in vacated and number not in self.holes
            if at_home or number in seen:
                found.append((place, number))
            seen.add(number)
        return found
