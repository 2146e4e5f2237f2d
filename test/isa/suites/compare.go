package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"steadfast/compute/riscv/bare"
)

const (
	memoryBytes = 64 << 20
	// limit is far more than any of the tests needs.
	limit = 200_000_000
	// qemuMost bounds how long QEMU runs one.
	qemuMost = 60 * time.Second
)

// runOne runs a program, and compares its signature if that is wanted. An error is a failure.
// The comparison comes last: a program that fails by its own word has no signature worth
// waiting for QEMU.
func runOne(file string, compared bool) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var console bytes.Buffer
	m, err := bare.Load(bytes.NewReader(b), bare.Options{Memory: memoryBytes, Limit: limit, Console: &console})
	if err != nil {
		return err
	}
	defer func() { _ = m.Release() }()
	r, err := m.Run()
	switch {
	case err != nil:
		return fmt.Errorf("%w %s", err, console.String())
	case r.Unexpected:
		return fmt.Errorf("an exception without a handler: mcause 0x%x, mepc 0x%x, mtval 0x%x", r.Cause, r.PC, r.Value)
	case r.Code != 0:
		return fmt.Errorf("test %d %s", r.Code, console.String())
	case !compared:
		return nil
	}
	var signature bytes.Buffer
	if err := m.WriteSignature(&signature, 8); err != nil {
		return err
	}
	want, err := qemuSignature(file, b)
	if err != nil {
		return fmt.Errorf("QEMU: %w", err)
	}
	return firstDifference(signature.Bytes(), want)
}

// firstDifference tells the first line that differs.
func firstDifference(got, want []byte) error {
	g, w := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	if len(g) != len(w) {
		return fmt.Errorf("a signature of %d lines, QEMU's has %d", len(g), len(w))
	}
	for i := range g {
		if !bytes.Equal(g[i], w[i]) {
			return fmt.Errorf("line %d of the signature is %s, QEMU's %s", i+1, g[i], w[i])
		}
	}
	return nil
}

// qemuSignature runs a program in QEMU, whose memory is a file, and reads the signature
// there. It is written here a second time, on purpose: a mistake in how the product finds and
// writes a signature would else be made on both sides, and compare as equal.
func qemuSignature(file string, program []byte) (signature []byte, err error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	all, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	at := map[string]uint64{}
	for _, s := range all {
		at[s.Name] = s.Value - bare.Base
	}
	ram := file + ".ram"
	cmd := exec.Command("qemu-system-riscv64", "-M", "virt,memory-backend=ram", "-m", fmt.Sprint(memoryBytes>>20), "-nodefaults", "-display", "none", "-bios", "none",
		"-cpu", "rv64,h=off,v=off,zba=on,zbb=on,zbs=on,zbc=off,sstc=on",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", memoryBytes, ram),
		"-device", "loader,file="+file)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // that it was killed, or else what it said
		close(ended)
	}()
	memory, err := untilTold(ram, at["tohost"], ended)
	_ = cmd.Process.Kill()
	<-ended
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, bytes.TrimSpace(said.Bytes()))
	}
	for b := memory[at["begin_signature"]:at["end_signature"]]; len(b) >= 8; b = b[8:] {
		signature = fmt.Appendf(signature, "%016x\n", binary.LittleEndian.Uint64(b))
	}
	return signature, nil
}

// untilTold waits until the program in a memory has told its end, and returns the memory. It
// looks at the word in the file that QEMU shares its memory with: there is no other way to
// see it that needs nothing of the program. QEMU does not end by itself unless it fails.
func untilTold(ram string, toHost uint64, ended <-chan struct{}) ([]byte, error) {
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	most := time.After(qemuMost)
	for {
		select {
		case <-ended:
			return nil, errors.New("it has ended by itself")
		case <-most:
			return nil, fmt.Errorf("it has not ended in %v", qemuMost)
		case <-look.C:
		}
		f, err := os.Open(ram)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var word [8]byte
		_, err = f.ReadAt(word[:], int64(toHost))
		if cerr := f.Close(); err != nil || cerr != nil || binary.LittleEndian.Uint64(word[:]) == 0 {
			continue // not made up, or not ended, yet
		}
		return os.ReadFile(ram)
	}
}
