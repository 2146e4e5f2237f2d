package riscv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const startSource = `
	.globl _start
_start:
	li sp, 0x82000000
	call run
	ecall
`

// buildBench compiles testdata/bench.c, or skips with the reason.
func buildBench(b testing.TB) []byte {
	b.Helper()
	const cc = "riscv64-linux-gnu-gcc"
	if _, err := exec.LookPath(cc); err != nil {
		b.Skip("SKIP: no " + cc + " (apt-get install gcc-riscv64-linux-gnu)")
	}
	dir := b.TempDir()
	start, elf, raw := filepath.Join(dir, "start.s"), filepath.Join(dir, "bench"), filepath.Join(dir, "bench.bin")
	if err := os.WriteFile(start, []byte(startSource), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, args := range [][]string{
		{
			cc, "-O2", "-march=rv64gc", "-mabi=lp64d", "-mcmodel=medany", "-ffreestanding", "-nostdlib", "-static", "-fno-pic",
			"-Wl,-Ttext=0x80010000", "-Wl,--build-id=none,--no-relax", "-o", elf, start, "testdata/bench.c",
		},
		{"riscv64-linux-gnu-objcopy", "-O", "binary", elf, raw},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	code, err := os.ReadFile(raw)
	if err != nil {
		b.Fatal(err)
	}
	return code
}

// processorTime is what the process has used of the host's processors: unlike the time
// that has passed it can be compared on a machine that does other work as well.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMix runs user code under Sv39 with its own page tables of 4 KiB pages.
func BenchmarkMix(b *testing.B) {
	code := buildBench(b)
	for i, name := range []string{"loop", "crc", "heapsort", "matmul", "chase", "dhrystone"} {
		b.Run(name, func(b *testing.B) {
			var instructions uint64
			var took time.Duration
			for range b.N {
				n, t := runMix(b, code, uint64(i))
				instructions, took = instructions+n, took+t
			}
			b.ReportMetric(float64(instructions)/1e6/took.Seconds(), "MIPS")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func runMix(b *testing.B, code []byte, which uint64) (instructions uint64, took time.Duration) {
	h, _ := newTest(b, 64<<20, Options{})
	copy(h.bytes[0x10000:], code)
	const root, handler = testBase + 0x3000000, testBase + 0x100
	identity(h, root, 0x2000000, pteV|pteR|pteW|pteX|pteU|pteA|pteD)
	put(h, handler, 0x10500073) // wfi
	put64(h, root+0x2000, testBase>>2|pteV|pteR|pteX)
	h.Reset(0x80010000, which, 0)
	h.mode, h.stvec = modeU, handler
	h.csrWrite(csrSatp, 8<<60|root>>12)

	start := processorTime(b)
	if stop := h.Run(1 << 40); stop != StopIdle || h.scause != causeEcallU {
		b.Fatalf("stop %d, cause %d at %x", stop, h.scause, h.sepc)
	}
	return h.count, processorTime(b) - start
}

// identity maps size bytes of RAM from its base on to themselves, by pages of 4 KiB.
func identity(h *Hart, root, size, flags uint64) {
	middle, leaves := root+0x1000, root+0x2000
	put64(h, root+testBase>>30*8, middle>>2|pteV)
	for at := uint64(0); at < size; at += 2 << 20 {
		put64(h, middle+at>>21*8, leaves>>2|pteV)
		for page := uint64(0); page < 512; page++ {
			put64(h, leaves+page*8, (testBase+at+page<<12)>>2|flags)
		}
		leaves += 0x1000
	}
}
