"""Show recordings on a terminal: keys, screen and clock around cast.Player."""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import time
from typing import Any, Callable, Iterator, Optional

from recuse import cast
from recuse.errors import OutputError

SEEK_SECONDS = 5.0
FOLLOW_SECONDS = 0.2

_LEAVE_ALTERNATE = b"\x1b[?1049l"
_RESET = b"\x1b[!p\x1b[0m\x1b(B\x0f\x1b[r\x1b[?7h\x1b[?25h"
_CLEAR = b"\x1b[H\x1b[2J"
_NEW_SCREEN = b"\x1bc"
_ALTERNATE = re.compile(rb"\x1b\[\?(?:1049|1047|47)([hl])")
# Answers of the terminal to what a recorded program asked look like keys and must not act as such.
_KEY = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]"
    rb"|\x1bO."
    rb"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|\x1b[^\[O\]PX^_]"
    rb"|[^\x1b]"
)
_WITHHOLDS = re.compile(r"recuse (?:paused|content withheld)\b")
_NAMES = {
    b" ": "pause",
    b"q": "quit",
    b"\x03": "quit",
    b"\x04": "quit",
    b".": "forward",
    b",": "back",
    b"\x1a": "suspend",
    b"\x1b[C": "right",
    b"\x1bOC": "right",
    b"\x1b[D": "left",
    b"\x1bOD": "left",
    b"\x1b[A": "faster",
    b"\x1bOA": "faster",
    b"\x1b[B": "slower",
    b"\x1bOB": "slower",
}


def parse_keys(data: bytes) -> list[str]:
    """Return the names of the keys in what a terminal sent; others are left out."""
    return [_NAMES[k] for k in _KEY.findall(data) if k in _NAMES]


class Quit(Exception):
    """The viewer has seen enough."""


class Screen:
    """What events look like on a terminal or in a pipe."""

    def __init__(self, fd: int, raw: bool) -> None:
        self.fd = fd
        self.raw = raw
        self.is_tty = os.isatty(fd)
        self.size = (0, 0)  # the largest that the recording asked for
        self._alternate = False
        self._in_line = False  # only of a pipe: whether the last line has no end yet
        self._gaps = b""  # what was said of them since the last output
        self._shields = {code: cast.Shield() for code in cast.DISPLAYED_CODES}

    def show(self, events: tuple[cast.Event, ...], reset: bool = False) -> None:
        parts = []
        if reset and self.is_tty:
            parts.append(self._cleared())
        if reset:
            self._in_line, self._gaps = False, b""
            self._shields = {code: cast.Shield() for code in cast.DISPLAYED_CODES}
        for event in events:
            if event.code in cast.DISPLAYED_CODES:
                shield = self._shields[event.code]
                data = event.data if self.raw else shield.feed(event.data)
                parts.append(data)
                if self.is_tty and data.startswith(_NEW_SCREEN):
                    parts.append(self._gaps)  # a pause ends with one, and that wiped them away
                self._gaps = b""
                if data:
                    self._in_line = not self.is_tty and not data.endswith(b"\n")
                for match in _ALTERNATE.finditer(data):
                    self._alternate = match.group(1) == b"h"
            elif event.code == "g" and not self.raw:
                line = self._line("[gap: %s]" % cast.printable(event.text))
                parts.append(line)
                self._gaps += line
            elif event.code == "m" and not self.raw and _WITHHOLDS.match(event.text):
                # Where what is not there begins; how much it is, the gap says, after it.
                parts.append(self._line("[%s]" % cast.printable(event.text[len("recuse ") :])))
            elif event.code == "r":
                self.resize(event.text)
        self._write(b"".join(parts))

    def _line(self, text: str) -> bytes:
        words = text.encode()
        if self.is_tty:
            return b"\r\n\x1b[7m" + words + b"\x1b[0m\r\n"
        start = b"\n" if self._in_line else b""
        self._in_line = False
        return start + words + b"\n"

    def resize(self, text: str) -> None:
        match = re.match(r"(\d{1,5})x(\d{1,5})\Z", text)
        if match:
            self.size = (
                max(self.size[0], int(match.group(1))),
                max(self.size[1], int(match.group(2))),
            )

    def too_large(self) -> Optional[str]:
        """Say so if the recording does not fit on the terminal."""
        if not self.is_tty:
            return None
        columns, rows = os.get_terminal_size(self.fd)
        if columns and (self.size[0] > columns or self.size[1] > rows):
            return "recorded at %dx%d, this terminal has %dx%d: enlarge it to see all as it was" % (
                self.size + (columns, rows)
            )
        return None

    def _cleared(self) -> bytes:
        leave = _LEAVE_ALTERNATE if self._alternate else b""
        self._alternate = False
        return leave + _RESET + _CLEAR

    def close(self) -> None:
        """Leave the terminal as a shell wants it."""
        if self.is_tty:
            leave = _LEAVE_ALTERNATE if self._alternate else b""
            self._write(leave + _RESET + b"\r\n")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except BrokenPipeError:
            raise
        except OSError as e:
            raise OutputError.of(e) from None


class Keyboard:
    """Keys of a terminal without waiting for lines; nothing at all if it is none."""

    def __init__(self, fd: int, screen: Screen, from_terminal: bool) -> None:
        self.fd: Optional[int] = fd if os.isatty(fd) else None
        self._saved: list[tuple[int, Any]] = []
        self._from_terminal = from_terminal
        self._screen = screen

    def __enter__(self) -> Keyboard:
        self.hold()
        return self

    def hold(self) -> None:
        if self.fd is not None:
            mode = termios.tcgetattr(self.fd)
            self._saved.append((self.fd, termios.tcgetattr(self.fd)))
            mode[0] &= ~(termios.IXON | termios.ICRNL)
            mode[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
        if self._screen.is_tty:
            # What a terminal showed has its carriage returns already; a pipe's output has none.
            mode = termios.tcgetattr(self._screen.fd)
            self._saved.append((self._screen.fd, termios.tcgetattr(self._screen.fd)))
            if self._from_terminal:
                mode[1] &= ~termios.OPOST
            else:
                mode[1] |= termios.OPOST | termios.ONLCR
            termios.tcsetattr(self._screen.fd, termios.TCSANOW, mode)

    def release(self) -> None:
        while self._saved:
            fd, mode = self._saved.pop()
            try:
                termios.tcsetattr(fd, termios.TCSAFLUSH, mode)
            except termios.error:
                pass  # hung up

    def __exit__(self, *_: object) -> None:
        self.release()

    def wait(self, seconds: Optional[float]) -> list[str]:
        """Wait so long, or until a key is pressed; None: until one is."""
        if self.fd is None:
            time.sleep(seconds or 0)
            return []
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return []
        data = os.read(self.fd, 4096)
        if not data:
            raise Quit
        return parse_keys(data)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: restore the terminal on the way out."""


def _on_signal(signo: int, frame: object) -> None:
    raise _Terminated


class _Signals:
    def __enter__(self) -> None:
        self._old = {s: signal.signal(s, _on_signal) for s in (signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, kind: object, *_: object) -> None:
        for signo, handler in self._old.items():
            signal.signal(signo, handler)
        if kind is _Terminated:
            raise SystemExit(128 + signal.SIGTERM)


def play(
    header: cast.Header,
    open_events: Callable[[], Iterator[cast.Event]],
    warn: Callable[[str], None],
    *,
    speed: float = 1.0,
    idle_limit: Optional[float] = None,
    start: float = 0.0,
    raw: bool = False,
    from_terminal: bool = True,
    in_fd: int = 0,
    out_fd: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Play a recording in its own time, or in that of the keys.

    `warn` says something beside the recording. The terminal is restored whatever happens.
    Raises: CastError where the recording cannot be read on.
    """
    screen = Screen(out_fd, raw)
    screen.size = (header.width, header.height)
    hint = screen.too_large()
    if hint:
        warn(hint)
    player = cast.Player(open_events, clock(), speed, idle_limit, start)
    with _Signals():
        keyboard = Keyboard(in_fd, screen, from_terminal)
        try:
            with keyboard:
                try:
                    _run(player, screen, keyboard, clock)
                except Quit:
                    pass
                finally:
                    screen.close()
        finally:
            later = screen.too_large()
            if later and later != hint:
                warn(later)


def _run(
    player: cast.Player, screen: Screen, keyboard: Keyboard, clock: Callable[[], float]
) -> None:
    pressed: list[str] = []
    while True:
        step = player.poll(clock())
        if isinstance(step, cast.End):
            return
        if isinstance(step, cast.Show):
            screen.show(step.events, step.reset)
            if keyboard.fd is not None:
                pressed += keyboard.wait(0)
        elif not pressed:
            pressed += keyboard.wait(step.seconds)
        else:
            # One at a time: what a key made due is shown before the next one counts.
            _act(pressed.pop(0), player, screen, keyboard, clock)
        if "quit" in pressed:
            raise Quit


def _act(
    key: str,
    player: cast.Player,
    screen: Screen,
    keyboard: Keyboard,
    clock: Callable[[], float],
) -> None:
    now = clock()
    if key == "pause":
        player.toggle(now)
    elif key in ("left", "right"):
        player.seek(SEEK_SECONDS if key == "right" else -SEEK_SECONDS, now)
    elif key in ("forward", "back"):
        player.step(key == "forward", now)
    elif key in ("faster", "slower"):
        player.change_speed(2.0 if key == "faster" else 0.5, now)
    elif key == "suspend":
        was_paused = player.paused
        if not was_paused:
            player.toggle(now)
        screen.close()
        keyboard.release()
        os.kill(os.getpid(), signal.SIGSTOP)
        keyboard.hold()
        player.repaint()
        if not was_paused:
            player.toggle(clock())


def follow(
    path: str,
    warn: Callable[[str], None],
    *,
    raw: bool = False,
    from_terminal: bool = True,
    in_fd: int = 0,
    out_fd: int = 1,
) -> None:
    """Show a recording up to now at once, then as it grows, until it is sealed or q is pressed."""
    screen = Screen(out_fd, raw)
    with _Signals(), Keyboard(in_fd, screen, from_terminal) as keyboard, open(path, "rb") as file:

        def blocks() -> Iterator[bytes]:
            while True:
                # Asked before reading: what is written until the file goes is still read.
                gone = os.fstat(file.fileno()).st_nlink == 0
                block = file.read(65536)
                if block:
                    yield block
                elif gone:
                    return
                elif "quit" in keyboard.wait(FOLLOW_SECONDS):
                    raise Quit

        try:
            header, events = cast.read(cast.split_lines(blocks()))
            screen.size = (header.width, header.height)
            hint = screen.too_large()
            if hint:
                warn(hint)
            for event in events:
                screen.show((event,))
                if event.code == "x":
                    break
        except Quit:
            pass
        finally:
            screen.close()
