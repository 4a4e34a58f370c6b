// Check with golang.org/x/mod what recuse writes: the note vectors, and a ledger with its proofs.
//
//	check VECTORS-DIRECTORY LEDGER-DIRECTORY VKEY
package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// What x/mod takes and we do not: it decodes base64 leniently, and does not look at a second
// signature by the same key.
var lenient = map[string]bool{
	"note-unused-bits.txt":   true,
	"note-good-then-bad.txt": true,
}

var failed bool

func report(ok bool, format string, args ...interface{}) {
	if !ok {
		failed = true
		fmt.Printf("FAIL "+format+"\n", args...)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(2)
	}
}

func checkVectors(dir string) (count int) {
	paths, err := filepath.Glob(filepath.Join(dir, "note-*.txt"))
	must(err)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		must(err)
		var expect string
		var msg []byte
		var known []note.Verifier
		other := false
		for _, line := range strings.Split(string(data), "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "expect":
				expect = value
			case "vkey":
				verifier, err := note.NewVerifier(value)
				if err != nil {
					other = true // a cosigner: x/mod knows type 1 alone
				} else {
					known = append(known, verifier)
				}
			case "hex":
				msg, err = hex.DecodeString(value)
				must(err)
			}
		}
		if other {
			continue
		}
		_, err = note.Open(msg, note.VerifierList(known...))
		good := expect == "ok" || lenient[filepath.Base(path)]
		report((err == nil) == good, "%s: expected %s, got %v", path, expect, err)
		count++
	}
	return count
}

type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var found []tlog.Hash
	for _, i := range indexes {
		found = append(found, m[i])
	}
	return found, nil
}

func readEntries(dir string) (entries [][]byte) {
	for n := 0; ; n++ {
		path := filepath.Join(dir, "tile/entries", fmt.Sprintf("%03d", n))
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			data, err = os.ReadFile(path + ".part")
		}
		if os.IsNotExist(err) {
			return entries
		}
		must(err)
		for len(data) > 0 {
			size := binary.BigEndian.Uint16(data)
			entries = append(entries, data[2:2+size])
			data = data[2+size:]
		}
	}
}

func checkLedger(dir, vkey string) int64 {
	msg, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	must(err)
	verifier, err := note.NewVerifier(vkey)
	must(err)
	opened, err := note.Open(msg, note.VerifierList(verifier))
	must(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	var stored memory
	entries := readEntries(dir)
	report(int64(len(entries)) == size, "%d entries, the checkpoint says %d", len(entries), size)
	for n, entry := range entries {
		hashes, err := tlog.StoredHashes(int64(n), entry, stored)
		must(err)
		stored = append(stored, hashes...)
	}
	root, err := tlog.TreeHash(size, stored)
	must(err)
	report(root.String() == lines[2], "root is %s, the checkpoint says %s", root, lines[2])
	proofs, err := filepath.Glob(filepath.Join(dir, "*.tlog-proof"))
	must(err)
	report(len(proofs) > 0, "no proofs to check")
	for _, path := range proofs {
		data, err := os.ReadFile(path)
		must(err)
		head, _, _ := strings.Cut(string(data), "\n\n")
		lines := strings.Split(head, "\n")
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		must(err)
		var proof tlog.RecordProof
		for _, line := range lines[2:] {
			hash, err := base64.StdEncoding.DecodeString(line)
			must(err)
			var one tlog.Hash
			copy(one[:], hash)
			proof = append(proof, one)
		}
		err = tlog.CheckRecord(proof, size, root, index, tlog.RecordHash(entries[index]))
		report(err == nil, "%s: %v", path, err)
	}
	return size
}

func main() {
	vectors := checkVectors(os.Args[1])
	size := checkLedger(os.Args[2], os.Args[3])
	fmt.Printf("%d note vectors, %d entries checked\n", vectors, size)
	if failed || vectors == 0 {
		os.Exit(1)
	}
}
