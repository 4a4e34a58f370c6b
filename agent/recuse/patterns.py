"""Globs for names and commands, and networks for addresses, as rules write them."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from dataclasses import dataclass
from typing import Callable, Union

from recuse.facts import Address


@dataclass(frozen=True)
class Network:
    version: int
    shift: int  # bits of an address that are not looked at
    prefix: int

    def __contains__(self, address: Address) -> bool:
        return address[0] == self.version and address[1] >> self.shift == self.prefix


def parse_network(text: str) -> Network:
    try:
        if "%" in text:
            raise ValueError
        network: Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an address, nor a network such as 192.0.2.0/24, nor local"
        ) from None
    written = ipaddress.ip_address(text.partition("/")[0])
    if written != network.network_address:
        raise ValueError(f"{text!r} has bits set beyond its prefix; did you mean {network}?")
    number, length = int(network.network_address), network.prefixlen
    if network.version == 6 and length >= 96 and number >> 32 == 0xFFFF:
        return Network(4, 128 - length, (number & 0xFFFFFFFF) >> (128 - length))
    shift = network.max_prefixlen - length
    return Network(network.version, shift, number >> shift)


def compile_glob(glob: str) -> Callable[[str], bool]:
    """Make a test of a whole string; the plain shapes need no regular expression."""
    middle = glob.strip("*")
    if not any(mark in middle for mark in "*?["):
        if middle == glob:
            return glob.__eq__
        if not glob.endswith("*"):
            return lambda text: text.endswith(middle)
        if not glob.startswith("*"):
            return lambda text: text.startswith(middle)
        return lambda text: middle in text
    at = 0
    while True:
        at = glob.find("[", at)
        if at < 0:
            break
        start = at + 1 + glob.startswith("!", at + 1)
        end = glob.find("]", start + 1)
        if end < 0:
            raise ValueError(f"bad glob {glob!r}: '[' is never closed (a plain one is '[[]')")
        for low, high in re.findall("(.)-(.)", glob[start:end], re.DOTALL):
            if low > high:
                raise ValueError(f"bad glob {glob!r}: the range {low}-{high} is empty")
        at = end + 1
    match = re.compile(fnmatch.translate(glob)).match
    return lambda text: match(text) is not None
