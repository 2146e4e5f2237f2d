package riscv

import (
	"bytes"
	"math"
	"testing"

	"steadfast/compute/riscv/asm"
)

// call makes one SBI call.
func call(h *Hart, extension, function uint64, args ...uint64) (err int64, value uint64) {
	put(h, testBase, asm.Ecall)
	h.pc, h.mode = testBase, modeS
	h.x[17], h.x[16] = extension, function
	h.x[10], h.x[11], h.x[12] = 0, 0, 0
	copy(h.x[10:13], args)
	count := h.count
	h.Run(count + 1)
	if h.count != count+1 && len(args) < 4 {
		return math.MinInt64, 0
	}
	return int64(h.x[10]), h.x[11]
}

func TestSBI(t *testing.T) {
	h, _ := newTest(t, 1<<20, Options{})
	h.Reset(testBase, 0, 0)
	for _, c := range []struct {
		name                string
		extension, function uint64
		args                []uint64
		err                 int64
		value               uint64
	}{
		{"version", sbiBase, 0, nil, 0, 0x02000000},
		{"implementation", sbiBase, 1, nil, 0, sbiImplementation},
		{"probe of TIME", sbiBase, 3, []uint64{sbiTime}, 0, 1},
		{"probe of PMU", sbiBase, 3, []uint64{0x504d55}, 0, 0},
		{"vendor", sbiBase, 4, nil, 0, 0},
		{"base 7", sbiBase, 7, nil, sbiNotSupported, 0},
		{"PMU", 0x504d55, 0, nil, sbiNotSupported, 0},
		{"fence of all", sbiRfence, 1, []uint64{0, ones}, 0, 0},
		{"fence of hart 0", sbiRfence, 0, []uint64{1, 0}, 0, 0},
		{"fence of hart 1", sbiRfence, 0, []uint64{2, 0}, sbiInvalidParam, 0},
		{"fence of a guest", sbiRfence, 3, nil, sbiNotSupported, 0},
		{"status of hart 0", sbiHSM, 2, []uint64{0}, 0, 0},
		{"status of hart 1", sbiHSM, 2, []uint64{1}, sbiInvalidParam, 0},
		{"start of hart 0", sbiHSM, 0, []uint64{0}, sbiAlreadyAvailable, 0},
		{"start of hart 1", sbiHSM, 0, []uint64{1}, sbiInvalidParam, 0},
		{"stop", sbiHSM, 1, nil, sbiNotSupported, 0},
		{"reset of another kind", sbiSRST, 0, []uint64{7, 0}, sbiInvalidParam, 0},
		{"console over the end", sbiDBCN, 0, []uint64{9, testBase + 1<<20 - 8, 0}, sbiInvalidParam, 0},
		{"console above", sbiDBCN, 0, []uint64{1, testBase, 1}, sbiInvalidParam, 0},
		{"IPI to hart 5", sbiIPI, 0, []uint64{1, 5}, sbiInvalidParam, 0},
	} {
		if err, value := call(h, c.extension, c.function, c.args...); err != c.err || value != c.value {
			t.Errorf("%s: %d and %x, want %d and %x", c.name, err, value, c.err, c.value)
		}
	}
	if h.soft != 0 {
		t.Error("an IPI to another hart came here")
	}
	call(h, sbiIPI, 0, 1, 0)
	if h.soft != irqSSI {
		t.Error("no IPI came")
	}
	call(h, sbiTime, 0, 1234)
	if h.stimecmp != 1234 {
		t.Errorf("stimecmp is %d", h.stimecmp)
	}
}

func TestSBIConsole(t *testing.T) {
	h, w := newTest(t, 1<<20, Options{})
	h.Reset(testBase, 0, 0)
	copy(h.bytes[0x2000:], "hello")
	if err, n := call(h, sbiDBCN, 0, 5, testBase+0x2000, 0); err != 0 || n != 5 {
		t.Errorf("%d, %d", err, n)
	}
	call(h, sbiDBCN, 2, '!')
	call(h, sbiPutchar, 0, '?')
	if string(w.console) != "hello!?" {
		t.Errorf("the console has %q", w.console)
	}
	w.input = []byte("abc")
	if err, n := call(h, sbiDBCN, 1, 2, testBase+0x3000, 0); err != 0 || n != 2 || !bytes.Equal(h.bytes[0x3000:0x3002], []byte("ab")) {
		t.Errorf("%d, %d", err, n)
	}
	if c, _ := call(h, sbiGetchar, 0); c != 'c' {
		t.Errorf("read %d", c)
	}
	if c, _ := call(h, sbiGetchar, 0); c != -1 {
		t.Errorf("read %d of nothing", c)
	}
	// More than one call moves.
	if err, n := call(h, sbiDBCN, 0, 100_000, testBase+0x4000, 0); err != 0 || n != consoleChunk {
		t.Errorf("%d, %d", err, n)
	}
}

func TestSBIReset(t *testing.T) {
	h, w := newTest(t, 1<<20, Options{})
	put(h, testBase, asm.Ecall, asm.Jal(0, 0))
	h.Reset(testBase, 0, 0)
	h.x[17], h.x[10] = sbiSRST, uint64(ResetCold)
	if stop := h.Run(100); stop != StopAsked || len(w.resets) != 1 || w.resets[0] != ResetCold || h.count != 1 {
		t.Errorf("stop %d, %v, at %d", stop, w.resets, h.count)
	}
	h.Reset(testBase, 0, 0)
	h.x[17] = sbiShutdown
	if stop := h.Run(100); stop != StopAsked || w.resets[1] != ResetShutdown {
		t.Errorf("stop %d, %v", stop, w.resets)
	}
}
