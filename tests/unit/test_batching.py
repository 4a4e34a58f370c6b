"""Work that is done for all who wait at once."""

from __future__ import annotations

import asyncio
from typing import List, Sequence, Union

import pytest

from recuse.batching import Batcher, in_thread


def test_who_asks_during_a_round_is_served_by_the_next() -> None:
    rounds: List[List[int]] = []
    gate = asyncio.Event

    async def go() -> None:
        begun, end = gate(), gate()

        async def work(asked: Sequence[int]) -> Sequence[int]:
            rounds.append(list(asked))
            begun.set()
            await end.wait()
            return [one * 10 for one in asked]

        batcher: Batcher[int, int] = Batcher(work)
        first = [asyncio.ensure_future(batcher.ask(n)) for n in (1, 2)]
        await begun.wait()
        later = [asyncio.ensure_future(batcher.ask(n)) for n in (3, 4)]
        await asyncio.sleep(0)
        assert not first[0].done()
        end.set()
        assert await asyncio.gather(*first, *later) == [10, 20, 30, 40]

    asyncio.run(go())
    assert rounds == [[1, 2], [3, 4]]


def test_an_error_goes_to_whom_it_concerns_and_what_is_raised_to_all() -> None:
    async def work(asked: Sequence[int]) -> Sequence[Union[int, Exception]]:
        if 0 in asked:
            raise KeyError("all")
        return [ValueError(str(one)) if one < 0 else one for one in asked]

    async def go() -> None:
        batcher: Batcher[int, int] = Batcher(work)
        good, bad = await asyncio.gather(
            batcher.ask(1), batcher.ask(-1), return_exceptions=True
        )
        assert good == 1 and isinstance(bad, ValueError)
        found = await asyncio.gather(batcher.ask(0), batcher.ask(5), return_exceptions=True)
        assert [type(one) for one in found] == [KeyError, KeyError]
        assert await batcher.ask(7) == 7  # an error ends nothing

    asyncio.run(go())


def test_rounds_are_as_far_apart_as_wanted() -> None:
    began: List[float] = []

    async def go() -> None:
        async def work(asked: Sequence[int]) -> Sequence[int]:
            began.append(asyncio.get_running_loop().time())
            return asked

        batcher: Batcher[int, int] = Batcher(work, 0.05)
        for n in range(3):
            await batcher.ask(n)

    asyncio.run(go())
    assert all(after - before >= 0.05 for before, after in zip(began, began[1:]))


def test_a_thread_answers_in_one_call_and_stop_waits_for_it() -> None:
    calls: List[int] = []

    def look(asked: Sequence[int]) -> Sequence[int]:
        calls.append(len(asked))
        return [-one for one in asked]

    async def go() -> None:
        batcher = Batcher(in_thread(look))
        assert await asyncio.gather(*map(batcher.ask, range(5))) == [0, -1, -2, -3, -4]
        under_way = asyncio.ensure_future(batcher.ask(6))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(asyncio.CancelledError):
            late = asyncio.ensure_future(batcher.ask(8))
            await asyncio.sleep(0)
            await batcher.stop()
            await late
        assert await under_way == -6

    asyncio.run(go())
    assert calls == [5, 1]
