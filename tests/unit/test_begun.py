"""Coroutines that are begun by hand."""

from __future__ import annotations

import asyncio
from typing import List

import pytest

from recuse.begun import Begun


def test_what_need_not_wait_ends_at_once() -> None:
    async def run() -> None:
        done: List[bool] = []

        async def work() -> None:
            done.append(True)

        assert Begun(work()).ended and done

    asyncio.run(run())


def test_what_waits_goes_on_when_it_need_not_any_more() -> None:
    async def run() -> None:
        first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
        heard: List[int] = []

        async def work() -> None:
            heard.append(await first)
            with pytest.raises(ValueError):
                await second
            heard.append(2)

        begun = Begun(work())
        assert not begun.go_on() and not heard
        first.set_result(1)
        assert not begun.go_on() and heard == [1]
        second.set_exception(ValueError())
        assert begun.go_on() and heard == [1, 2]

    asyncio.run(run())


def test_the_rest_is_done_in_a_task() -> None:
    async def run() -> None:
        first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
        heard: List[object] = []

        async def work() -> None:
            heard.append(await first)
            await asyncio.sleep(0)
            heard.append(asyncio.current_task())
            with pytest.raises(ValueError):
                await second

        begun = Begun(work())
        task = asyncio.create_task(begun.rest())
        for waited in (first, second):
            await asyncio.sleep(0)
            waited.set_result(1) if waited is first else waited.set_exception(ValueError())
        await task
        assert heard == [1, task]

    asyncio.run(run())


def test_what_gives_way_is_not_gone_on_with_but_in_a_task() -> None:
    async def run() -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            assert asyncio.current_task() is not None

        begun = Begun(work())
        assert not begun.go_on()
        await asyncio.create_task(begun.rest())

    asyncio.run(run())


def test_who_ends_the_task_ends_what_was_begun() -> None:
    async def run() -> None:
        left: List[bool] = []

        async def work() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                left.append(True)

        task = asyncio.create_task(Begun(work()).rest())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left

    asyncio.run(run())
