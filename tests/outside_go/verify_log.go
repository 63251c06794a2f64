// verify_log checks a transparency log with golang.org/x/mod/sumdb, which knows nothing of this project.
//
//	verify_log VKEY FOLDER    a static log: checkpoint, hash tiles, and every entry in the bundles
//	verify_log VKEY URL       a served log: checkpoint and hash tiles
//
// The checkpoint is opened with sumdb/note, tiles are authenticated by tlog.TileHashReader, each record
// is proven with tlog.ProveRecord and tlog.CheckRecord, and older sizes with tlog.CheckTree.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

func read(place, name string) ([]byte, error) {
	if !strings.HasPrefix(place, "http") {
		return os.ReadFile(filepath.Join(place, name))
	}
	answer, err := http.Get(place + "/" + name)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		return nil, fmt.Errorf("%s: %s", name, answer.Status)
	}
	return io.ReadAll(answer.Body)
}

// path is the name of a tile in tlog-tiles, which leaves the height out of sumdb's "tile/8/...".
func path(t tlog.Tile) string {
	return "tile/" + strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", height))
}

type tiles struct{ place string }

func (r tiles) Height() int { return height }

func (r tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, t := range wanted {
		data, err := read(r.place, path(t))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (r tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func entries(place string, size int64) ([][]byte, error) {
	var found [][]byte
	for index := int64(0); index*256 < size; index++ {
		width := size - index*256
		if width > 256 {
			width = 256
		}
		name := path(tlog.Tile{H: height, L: 0, N: index, W: int(width)})
		data, err := read(place, strings.Replace(name, "tile/0/", "tile/entries/", 1))
		if err != nil {
			return nil, err
		}
		for len(data) > 0 {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("%s ends inside an entry", name)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			found = append(found, data[2:end])
			data = data[end:]
		}
	}
	if int64(len(found)) != size {
		return nil, fmt.Errorf("%d entries, and a size of %d", len(found), size)
	}
	return found, nil
}

func verify(vkey, place string) (int64, int64, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return 0, 0, err
	}
	text, err := read(place, "checkpoint")
	if err != nil {
		return 0, 0, err
	}
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return 0, 0, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return 0, 0, fmt.Errorf("not a checkpoint of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, 0, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return 0, 0, fmt.Errorf("not a root")
	}
	tree := tlog.Tree{N: size}
	copy(tree.Hash[:], root)
	reader := tlog.TileHashReader(tree, tiles{place})
	for _, older := range []int64{1, size / 2, size - 1, size} {
		if older < 1 {
			continue
		}
		hash, err := tlog.TreeHash(older, reader)
		if err != nil {
			return 0, 0, err
		}
		proof, err := tlog.ProveTree(size, older, reader)
		if err != nil {
			return 0, 0, err
		}
		if err := tlog.CheckTree(proof, size, tree.Hash, older, hash); err != nil {
			return 0, 0, err
		}
	}
	if strings.HasPrefix(place, "http") {
		return size, 0, nil
	}
	records, err := entries(place, size)
	if err != nil {
		return 0, 0, err
	}
	for index, record := range records {
		proof, err := tlog.ProveRecord(size, int64(index), reader)
		if err != nil {
			return 0, 0, err
		}
		if err := tlog.CheckRecord(proof, size, tree.Hash, int64(index), tlog.RecordHash(record)); err != nil {
			return 0, 0, err
		}
	}
	return size, int64(len(records)), nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: verify_log VKEY FOLDER|URL")
		os.Exit(2)
	}
	size, records, err := verify(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("ok %d records %d\n", size, records)
}
