#!/usr/bin/env python3
"""Turn the `hex:` and `in:` lines of a directory of vectors into the files a fuzzer starts from.

Of `in:` (vectors of recordings) it is what was read, after a first byte that says: in reads of 8.
"""

import sys
from pathlib import Path

vectors, corpus = Path(sys.argv[1]), Path(sys.argv[2])
corpus.mkdir(parents=True, exist_ok=True)
for vector in vectors.glob("*.txt"):
    for line in vector.read_text().splitlines():
        if line.startswith("hex:"):
            (corpus / vector.stem).write_bytes(bytes.fromhex(line[4:]))
    reads = [line.split()[3:] for line in vector.read_text().splitlines() if line[:3] == "in:"]
    if reads:
        read = b"".join(bytes.fromhex("".join(words)) for words in reads)
        (corpus / vector.stem).write_bytes(b"\x07" + read)
