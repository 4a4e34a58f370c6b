"""The disk that tests of lost power stand on keeps what a disk keeps, and no more."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from writelog import WriteLog

FILES = 60


@contextmanager
def mounted(source: str, *options: str) -> Iterator[Path]:
    """Mount a file system in a namespace that ends with the block; give where it is seen."""
    script = 'mount "$@" /mnt && echo && read end'
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        + [*options, source],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield Path(f"/proc/{process.pid}/root/mnt")
        process.stdin.close()


def test_what_was_flushed_is_there_after_each_loss_of_power(tmp_path: Path) -> None:
    """And the file system is whole; what was not flushed is there one time and not the next."""
    image, chance = tmp_path / "image", random.Random(1)
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    log, synced = WriteLog(image), []
    with log.served():
        found = subprocess.run(
            ["losetup", "--find", "--show", str(image)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        with mounted(found.stdout.strip()) as top:
            for number in range(FILES):
                with open(top / str(number), "w") as file:
                    file.write(f"{number}\n" * 1000)
                    if number % 2:
                        file.flush()
                        os.fsync(file.fileno())
                        synced.append((len(log.events), number))
    finally:
        subprocess.run(["losetup", "--detach", found.stdout.strip()], check=True)
    log.close()
    images, last = set(), synced[-1][0]
    flushes = [number for number, one in enumerate(log.events[:last]) if not one.data]
    waiting = {flush: flush - before for before, flush in zip(flushes, flushes[1:])}
    most = sorted(waiting, key=waiting.__getitem__)[-4:]
    for count in [*most, *chance.sample(range(1, last), 4)]:
        for _ in range(2):
            log.cut(count, tmp_path / "left", chance, 0.5)
            images.add((tmp_path / "left").read_bytes())
        with mounted(str(tmp_path / "left"), "-o", "loop") as top:
            for at, number in synced:
                whole = f"{number}\n" * 1000
                assert at > count or (top / str(number)).read_text() == whole, (count, number)
        checked = subprocess.run(
            ["e2fsck", "-f", "-n", str(tmp_path / "left")], stdout=subprocess.PIPE, text=True
        )
        assert not checked.returncode, checked.stdout
    assert len(images) > 8
