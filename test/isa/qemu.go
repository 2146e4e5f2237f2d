package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// state is what QEMU prints of a hart before each instruction.
type state struct {
	pc   uint64
	x, f [32]uint64
	csr  [len(csrNames)]uint64
}

// csrNames are the control and status registers that are printed, by their column.
var csrNames = [...]string{
	"mstatus", "mip", "mie", "mideleg", "medeleg", "mtvec", "stvec", "mepc", "sepc", "mcause", "scause",
	"mtval", "stval", "mscratch", "sscratch", "satp",
}

const qemuCommand = "qemu-system-riscv64"

// qemu is a run of QEMU that prints states.
type qemu struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	pipe   *os.File
	errors bytes.Buffer
	timer  *time.Timer
	line   []byte
	ahead  bool
}

// startQEMU runs an image. dir is for its file; limit ends a run that hangs. The states come
// by a pipe, as QEMU's log: -singlestep and nochain have it make one of each instruction, and
// of none two.
func startQEMU(dir string, img *image, limit time.Duration) (*qemu, error) {
	file := filepath.Join(dir, "image.bin")
	if err := os.WriteFile(file, img.bytes, 0o600); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	q := &qemu{out: bufio.NewReaderSize(r, 1<<20), pipe: r}
	q.cmd = exec.Command(qemuCommand, "-M", "virt", "-m", fmt.Sprint(ramSize>>20), "-smp", "1,maxcpus=2", "-nodefaults", "-display", "none",
		"-cpu", "rv64,h=off,v=off,zba=on,zbb=on,zbs=on,zbc=off,sstc=on",
		"-bios", "none", "-device", "loader,file="+file+",addr="+fmt.Sprint(ramBase),
		"-singlestep", "-d", "cpu,fpu,nochain", "-D", "/dev/fd/3")
	q.cmd.ExtraFiles = []*os.File{w}
	q.cmd.Stderr = &q.errors
	if err := q.cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	q.timer = time.AfterFunc(limit, func() { _ = q.cmd.Process.Kill() })
	return q, w.Close()
}

// close ends QEMU.
func (q *qemu) close() error {
	_ = q.cmd.Process.Kill()
	err := q.cmd.Wait()
	q.timer.Stop()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = nil
	}
	return errors.Join(err, q.pipe.Close())
}

// next reads a state; io.EOF when there are no more.
func (q *qemu) next(s *state) error {
	// " pc       0000000080000000" begins a state.
	for !q.ahead {
		if err := q.read(); err != nil {
			return err
		}
		q.ahead = bytes.HasPrefix(q.line, []byte(" pc "))
	}
	s.pc = hex(q.line[10:])
	q.ahead = false
	for column := -1; ; {
		if err := q.read(); err != nil {
			return err
		}
		switch {
		case bytes.HasPrefix(q.line, []byte(" pc ")):
			q.ahead = true
			return nil
		case len(q.line) > 3 && (q.line[1] == 'x' || q.line[1] == 'f') && q.line[2] >= '0' && q.line[2] <= '9':
			registers(q.line, s)
			if bytes.HasPrefix(q.line, []byte(" f28")) {
				return nil
			}
		case len(q.line) > 10:
			if column >= 0 && column < len(csrNames) {
				s.csr[column] = hex(q.line[10:])
			}
			column++ // mhartid goes first
		}
	}
}

func (q *qemu) read() error {
	line, err := q.out.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	q.line = line
	return nil
}

// registers reads a line of four: " x0/zero  0000000000000000 x1/ra ...".
func registers(line []byte, s *state) {
	set := &s.x
	if line[1] == 'f' {
		set = &s.f
	}
	for len(line) >= 27 {
		n := int(line[2] - '0')
		if line[3] != '/' {
			n = n*10 + int(line[3]-'0')
		}
		set[n&31] = hex(line[10:])
		line = line[26:]
	}
}

// hex reads 16 digits.
func hex(p []byte) uint64 {
	var v uint64
	for _, c := range p[:min(16, len(p))] {
		if c >= 'a' {
			c -= 'a' - 10
		} else {
			c -= '0'
		}
		v = v<<4 | uint64(c&15)
	}
	return v
}
