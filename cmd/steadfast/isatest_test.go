package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"steadfast/compute/riscv/asm"
	"steadfast/compute/riscv/bare"
)

// testProgram is a program that ends with a value in tohost, or never.
func testProgram(value uint64) []byte {
	t := asm.NewText(bare.Base)
	t.La(asm.T0, "tohost")
	t.Emit(asm.Li(asm.T1, value)...)
	t.Label("end")
	t.Emit(asm.Sd(asm.T1, asm.T0, 0))
	t.J("end")
	if t.Here()%8 != 0 {
		t.Emit(asm.Nop)
	}
	t.Label("tohost")
	toHost := t.Here()
	t.Emit(0, 0, 0x11223344, 0x55667788)
	return asm.ELF(bare.Base, t.Bytes(), map[string]uint64{"tohost": toHost, "begin_signature": toHost + 8, "end_signature": toHost + 16})
}

// TestISATest: what the command prints, how it exits, and what it writes.
func TestISATest(t *testing.T) {
	dir := t.TempDir()
	signature := filepath.Join(dir, "signature")
	for _, c := range []struct {
		name, text string
		file       []byte
		args       []string
		status     int
	}{
		{"pass", "PASS pass (", testProgram(1), []string{"--signature", signature, "--signature-granularity", "8"}, 0},
		{"fail", "FAIL fail: test 3 (", testProgram(7), nil, 1},
		{"trap", "FAIL trap: an exception", testProgram(1337), nil, 1},
		{"hang", "higher limit", testProgram(0), []string{"--limit", "10k"}, 80},
		{"none", "no ELF file", []byte("#!/bin/sh\n"), nil, 64},
		{"lines", "4, 8 and 16", testProgram(1), []string{"--signature", signature + "x", "--signature-granularity", "5"}, 64},
		{"small", "multiple of 4096", testProgram(1), []string{"--memory", "1000B"}, 64},
		{"absent", "no such file", nil, nil, 66},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(dir, c.name)
			if c.file != nil {
				if err := os.WriteFile(file, c.file, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			a := &app{in: strings.NewReader(""), out: &out, errs: &out, getenv: os.Getenv}
			status := a.run(t.Context(), append([]string{"machine", "isa-test", file}, c.args...))
			if status != c.status || !strings.Contains(out.String(), c.text) {
				t.Errorf("status %d: %s", status, out.String())
			}
		})
	}
	if b, err := os.ReadFile(signature); err != nil || string(b) != "5566778811223344\n" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(signature + "x"); err == nil {
		t.Error("a signature was begun that cannot be")
	}
}
