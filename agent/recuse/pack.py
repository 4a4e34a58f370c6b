"""Compression of segments: a gzip member each, made by ISA-L where its library is, else by zlib.

ISA-L (Debian's libisal2) takes a quarter of zlib's processor time for about the same size. Whoever
reads a member cannot tell, and need not know, which of them made it. See docs/decisions/021.
"""

from __future__ import annotations

import ctypes
import zlib
from typing import Any, Callable, Optional, Protocol

from .errors import SpoolError

_ISAL = "libisal.so.2"
_ISAL_LEVEL = 2
_ISAL_LEVEL_BYTES = 324 << 10  # ISAL_DEF_LVL2_DEFAULT
_ISAL_STATE_BYTES = 128 << 10  # struct isal_zstate has 82320 in 2.30
_OUT_BYTES = 256 << 10

_ZLIB_LEVEL = 2  # 6 makes text a sixth smaller for more than twice the processor time
_GZIP = 16 + zlib.MAX_WBITS  # a gzip header and trailer, see zlib.h
_SAMPLE_BYTES = 16 << 10
_DENSE = 0.7  # what shrinks to no less than that repeats nothing: to look for it is in vain


class Compressor(Protocol):
    """Makes one gzip member of what it is given, piece by piece.

    Lets go of the interpreter meanwhile.  Raises: SpoolError
    """

    def take(self, piece: bytearray) -> bytes:
        """Compress this, which may be gone then; what comes of it may come later."""

    def finish(self) -> bytes:
        """Give the rest of the member."""


Begin = Callable[[], Compressor]


class Zlib:
    """By zlib; what begins with much is worth a look at what it is made of.

    Of random bytes in base64 only the unused bits can be saved: zlib does that three times as fast
    if it looks for nothing else, and better.
    """

    def __init__(self) -> None:
        self._work = self._begin(zlib.Z_DEFAULT_STRATEGY)
        self._has_begun = False

    def take(self, piece: bytearray) -> bytes:
        if not self._has_begun and len(piece) >= _SAMPLE_BYTES * 4:
            middle = len(piece) // 2
            sample = piece[middle : middle + _SAMPLE_BYTES]
            if len(zlib.compress(sample, _ZLIB_LEVEL)) > _DENSE * len(sample):
                self._work = self._begin(zlib.Z_HUFFMAN_ONLY)
        self._has_begun = True
        return self._work.compress(piece)

    def finish(self) -> bytes:
        return self._work.flush()

    @staticmethod
    def _begin(strategy: int) -> "zlib._Compress":
        return zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)


class _Stream(ctypes.Structure):
    """struct isal_zstream of igzip_lib.h; `state` is the library's own, and has room to spare."""

    _fields_ = [
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint32),
        ("total_in", ctypes.c_uint32),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint32),
        ("total_out", ctypes.c_uint32),
        ("hufftables", ctypes.c_void_p),
        ("level", ctypes.c_uint32),
        ("level_buf_size", ctypes.c_uint32),
        ("level_buf", ctypes.c_void_p),
        ("end_of_stream", ctypes.c_uint16),
        ("flush", ctypes.c_uint16),
        ("gzip_flag", ctypes.c_uint16),
        ("hist_bits", ctypes.c_uint16),
        ("state", ctypes.c_char * _ISAL_STATE_BYTES),
    ]


class Isal:
    """By ISA-L, at its second level: the third saves a twentieth for more than twice the time."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._out = ctypes.create_string_buffer(_OUT_BYTES)
        self._level = ctypes.create_string_buffer(_ISAL_LEVEL_BYTES)
        self._stream = _Stream()
        library.isal_deflate_init(ctypes.byref(self._stream))
        self._stream.level = _ISAL_LEVEL
        self._stream.level_buf = ctypes.addressof(self._level)
        self._stream.level_buf_size = _ISAL_LEVEL_BYTES
        self._stream.gzip_flag = 1

    def take(self, piece: bytearray) -> bytes:
        self._stream.next_in = ctypes.addressof((ctypes.c_char * 0).from_buffer(piece))
        self._stream.avail_in = len(piece)
        return self._run()

    def finish(self) -> bytes:
        self._stream.end_of_stream = 1
        return self._run()

    def _run(self) -> bytes:
        """Compress what there is, until the library has no more to say."""
        stream, parts = self._stream, []
        while True:
            stream.next_out, stream.avail_out = ctypes.addressof(self._out), _OUT_BYTES
            code = self._library.isal_deflate(ctypes.byref(stream))
            if code:
                raise SpoolError(f"{_ISAL} cannot compress: error {code}")
            parts.append(ctypes.string_at(self._out, _OUT_BYTES - stream.avail_out))
            if stream.avail_out:
                return b"".join(parts)


def isal() -> Optional[Begin]:
    """Give what begins a compressor by ISA-L; None where there is none that does what it should."""
    sample = bytearray().join(b'[%d.5,"o","what is shown"]\n' % n for n in range(1000))
    try:
        library = ctypes.CDLL(_ISAL)

        def begin() -> Isal:
            return Isal(library)

        work = begin()
        is_good = zlib.decompress(work.take(sample) + work.finish(), _GZIP) == sample
    except (OSError, AttributeError, SpoolError, zlib.error):
        return None
    return begin if is_good else None


begin: Begin = isal() or Zlib
USED = "zlib" if begin is Zlib else "ISA-L"
"""Which of them compresses here."""
