#!/bin/sh
# Let golang.org/x/mod judge our notes, ledger and proofs.
# Needs the packages golang-go and golang-golang-x-mod-dev; no network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for count in 1 2 3 255 256 257 1000; do
    vkey=$(PYTHONPATH="$here/../../../../agent" python3 - "$work/$count" "$count" <<'PY'
import sys
from recuse import keys
from recuse.ledger import Ledger

path, count = sys.argv[1], int(sys.argv[2])
signer = keys.load_or_create(path + ".key", "example.org/recuse/host/h1/1")
with Ledger.open(path, signer, 0) as ledger:
    ledger.append([b"entry %d" % n for n in range(count)])
    ledger.checkpoint()
    for index in {0, count // 2, count - 1}:
        with open(f"{path}/{index}.tlog-proof", "wb") as file:
            file.write(ledger.prove(index))
print(signer.vkey)
PY
    )
    test -x "$work/check" || GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$work/cache" \
        go build -o "$work/check" "$here/check.go"
    "$work/check" "$here/.." "$work/$count" "$vkey"
done
