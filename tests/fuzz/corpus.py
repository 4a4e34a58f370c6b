#!/usr/bin/env python3
"""Turn the `hex:` lines of a directory of vectors into the files a fuzzer starts from."""

import sys
from pathlib import Path

vectors, corpus = Path(sys.argv[1]), Path(sys.argv[2])
corpus.mkdir(parents=True, exist_ok=True)
for vector in vectors.glob("*.txt"):
    for line in vector.read_text().splitlines():
        if line.startswith("hex:"):
            (corpus / vector.stem).write_bytes(bytes.fromhex(line[4:]))
