package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestStamp(t *testing.T) {
	var out bytes.Buffer
	if err := stamp(strings.NewReader("one\ntwo\n"), &out); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^\[ *\d+\.\d{6}\] one\n\[ *\d+\.\d{6}\] two\n$`).MatchString(out.String()) {
		t.Errorf("%q", out.String())
	}
}

// TestDisk is on a file: O_DIRECT with the lengths and memory that a load has.
func TestDisk(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "guest-") // on a disk: not every tmpfs takes O_DIRECT
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(path)
	if err != nil {
		t.Skipf("SKIP: no O_DIRECT here: %v", err)
	}
	defer func() { _ = d.Close() }()
	if d.Size() != 1<<20 {
		t.Errorf("size %d", d.Size())
	}
	buf := make([]byte, 1<<20) // as large as a load's, and so aligned
	for i, fua := range []bool{false, true} {
		p := buf[:3*4096]
		for j := range p {
			p[j] = byte(i + j)
		}
		if err := d.WriteAt(p, 8192, fua); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Error(err)
		}
		want := bytes.Clone(p)
		clear(p)
		if err := d.ReadAt(p, 8192); err != nil || !bytes.Equal(p, want) {
			t.Errorf("read %v", err)
		}
	}
	if err := d.ReadAt(buf[:8192], 1<<20-4096); err == nil {
		t.Error("no error beyond the end")
	}
	if err := d.ReadAt(buf[1:4097], 0); err == nil {
		t.Error("no error for memory that is not aligned")
	}
}
