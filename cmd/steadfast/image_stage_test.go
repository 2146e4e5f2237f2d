package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"steadfast/compute/image"
	"steadfast/compute/machine/machinetest"
	"steadfast/fault"
)

// TestStage: only a guest that powers itself off has done the second stage: not one whose
// build is given up, nor one that crashes, nor one that has no disk.
func TestStage(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b := image.Boot{Kernel: file("echo", machinetest.Echo()), Initrd: file("initrd", make([]byte, 512)), Disk: file("disk", make([]byte, 1<<20)), Console: &bytes.Buffer{}}
	// Obey wants a network card, and has none here.
	wedged := b
	wedged.Kernel = file("obey", machinetest.Obey())
	diskless := b
	diskless.Disk += "x"
	given, cancel := context.WithCancel(t.Context())
	s := stage{say: t.Logf}
	if err := s.Run(t.Context(), wedged); !fault.Is(err, fault.Failed) {
		t.Errorf("it has crashed: %v", err)
	}
	if err := s.Run(t.Context(), diskless); !fault.Is(err, fault.NotFound) {
		t.Errorf("it has no disk: %v", err)
	}
	over := make(chan error)
	go func() { over <- s.Run(given, b) }()
	cancel()
	if err := <-over; !fault.Is(err, fault.Canceled) {
		t.Errorf("it was given up: %v", err)
	}
}
