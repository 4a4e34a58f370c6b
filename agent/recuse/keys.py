"""Keys on disk: private ones as PKCS#8 PEM for their owner alone, public ones as a vkey."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Iterator

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from . import files
from .checkpoint import TYPE_LOG, Signer, Verifier
from .errors import CryptoError, NotFound

_MAX_KEY_BYTES = 16384


def load(path: str | os.PathLike[str], name: str, kind: int = TYPE_LOG) -> Signer:
    """Read a private key and let it sign under that name.

    Raises: NotFound if there is no file, CryptoError if it is no Ed25519 key or others may read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(f"key {os.fspath(path)} does not exist") from None
    except OSError as error:
        raise CryptoError(f"key {os.fspath(path)}: {error.strerror}") from None
    with open(fd, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise CryptoError(
                f"key {os.fspath(path)} has mode {mode:04o}",
                hint=f"if nobody else has read it: chmod 0600 {os.fspath(path)}",
            )
        pem = file.read(_MAX_KEY_BYTES)
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CryptoError(f"key {os.fspath(path)} is not an unencrypted PEM key") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise CryptoError(f"key {os.fspath(path)} is not an Ed25519 key")
    return Signer(name, private, kind)


def load_or_create(path: str | os.PathLike[str], name: str, kind: int = TYPE_LOG) -> Signer:
    """Read a private key, or make one that is on disk when this returns.

    Of two processes that make one at the same time, both get the same.
    Raises: CryptoError
    """
    try:
        return load(path, name, kind)
    except NotFound:
        pass
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with _naming(path):
        with contextlib.suppress(FileExistsError):  # the other one was first
            files.create(path, pem, 0o600)
        files.sync_directory(os.path.dirname(path) or ".")
    return load(path, name, kind)


def write_vkey(path: str | os.PathLike[str], signer: Signer) -> None:
    """Write the public half, for everybody to read; replaces the file as a whole."""
    with _naming(path):
        mine = f"{os.fspath(path)}.{os.urandom(6).hex()}.new"  # another process may do the same
        files.replace(path, f"{signer.vkey}\n".encode(), temporary=mine)
        files.sync_directory(os.path.dirname(path) or ".")


def read_vkey(path: str | os.PathLike[str]) -> Verifier:
    """Read a public key.

    Raises: NotFound, CryptoError
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_BYTES)
        return Verifier.parse(data.decode("utf-8"))
    except FileNotFoundError:
        raise NotFound(f"key {os.fspath(path)} does not exist") from None
    except OSError as error:
        raise CryptoError(f"key {os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CryptoError(f"key {os.fspath(path)} is not text") from None
    except CryptoError as error:
        raise CryptoError(f"key {os.fspath(path)}: {error.message}") from None


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = os.fspath(path)
        raise CryptoError(f"key {name}: {error.strerror}", files.next_step(name)) from None
