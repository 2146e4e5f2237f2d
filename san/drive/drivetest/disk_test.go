package drivetest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive"
)

// filled returns n blocks of one byte.
func filled(b byte, n int) [][]byte {
	p := bufpool.Aligned(n * drive.BlockSize)
	for i := range p {
		p[i] = b
	}
	return [][]byte{p}
}

// sectors reads block b and returns the byte each of its sectors is made of.
func sectors(t *testing.T, h *Handle, b int64) (out [sectorsPerBlock]byte) {
	t.Helper()
	p := bufpool.Aligned(drive.BlockSize)
	if err := h.ReadAt(p, b*drive.BlockSize); err != nil {
		t.Fatal(err)
	}
	for s := range out {
		out[s] = p[s*sectorSize]
		if !bytes.Equal(p[s*sectorSize:(s+1)*sectorSize], bytes.Repeat(out[s:s+1], sectorSize)) {
			t.Fatalf("block %d: sector %d is torn inside", b, s)
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPowerLoss draws many power losses over the same five writes and holds
// each sector to what may survive; every way of surviving must come up.
func TestPowerLoss(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := NewWorld()
		d := w.NewDisk("a", 1<<20, r)
		h := d.Open()
		must(t, h.WriteAt(filled(1, 3), 0)) // then flushed
		must(t, h.Flush())
		must(t, h.WriteAt(filled(2, 1), 0))
		must(t, h.WriteAt(filled(3, 1), 0))
		must(t, h.WriteDurable(filled(4, 1), drive.BlockSize))
		w.EndAfter(1)
		if err := h.WriteDurable(filled(5, 1), 2*drive.BlockSize); !fault.Is(err, fault.Failed) {
			t.Fatal(err)
		}
		if err := h.Flush(); !fault.Is(err, fault.Failed) || !w.Ended() {
			t.Fatal("the world goes on after its end")
		}
		w.PowerLoss(r)
		if err := h.Flush(); !fault.Is(err, fault.Failed) {
			t.Fatal("a handle works in the next life")
		}
		h = d.Open()
		allowed := [3]string{"\x01\x02\x03", "\x04", "\x01\x05"}
		for b := range allowed {
			got := sectors(t, h, int64(b))
			for _, s := range got {
				if !bytes.ContainsRune([]byte(allowed[b]), rune(s)) {
					t.Fatalf("seed %d: block %d holds %v, allowed %q", seed, b, got, allowed[b])
				}
			}
			seen[string(got[:])] = true
		}
		before := sectors(t, h, 0)
		w.PowerLoss(r)
		if sectors(t, d.Open(), 0) != before {
			t.Fatal("a second power loss changed what the first left")
		}
	}
	for _, whole := range []byte{1, 2, 3, 4, 5} {
		if !seen[string(bytes.Repeat([]byte{whole}, sectorsPerBlock))] {
			t.Errorf("a block of only %d never came up", whole)
		}
	}
	if len(seen) < 50 {
		t.Errorf("only %d different blocks came up: too few torn ones", len(seen))
	}
}

// TestKill says that the death of the process loses nothing that was written.
func TestKill(t *testing.T) {
	torn := false
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := NewWorld()
		d := w.NewDisk("a", 1<<20, r)
		h := d.Open()
		must(t, h.WriteAt(filled(1, 2), 0))
		w.EndAfter(1)
		if err := h.WriteAt(filled(2, 1), drive.BlockSize); err == nil {
			t.Fatal("the end went unnoticed")
		}
		w.Kill(r)
		h = d.Open()
		if got := sectors(t, h, 0); got != [8]byte{1, 1, 1, 1, 1, 1, 1, 1} {
			t.Fatalf("seed %d: %v", seed, got)
		}
		got := sectors(t, h, 1)
		torn = torn || bytes.ContainsAny(got[:], "\x01") && bytes.ContainsAny(got[:], "\x02")
	}
	if !torn {
		t.Error("a write in flight was never torn")
	}
}

// TestFaults has each fault strike once.
func TestFaults(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	d := NewWorld().NewDisk("a", 1<<20, r)
	h := d.Open()
	one := [8]byte{1, 1, 1, 1, 1, 1, 1, 1}

	d.Plan(LoseWrite, 2)
	must(t, h.WriteAt(filled(1, 1), 0))
	must(t, h.WriteDurable(filled(2, 1), 0))
	if got := sectors(t, h, 0); got != one {
		t.Errorf("after a lost write: %v", got)
	}

	d.Plan(MisdirectWrite, 1)
	before := len(d.Written())
	must(t, h.WriteDurable(filled(3, 1), 0))
	if got := sectors(t, h, 0); got != one || len(d.Written()) != before+1 {
		t.Errorf("after a misdirected write: %v, %d blocks", got, len(d.Written()))
	}

	d.FlipBit(0, 0)
	p := bufpool.Aligned(drive.BlockSize)
	must(t, h.ReadAt(p, 0))
	if p[0] != 0 || p[1] != 1 {
		t.Errorf("after a flipped bit: %v", p[:2])
	}

	d.MakeUnreadable(0)
	if err := h.ReadAt(p, 0); !fault.Is(err, fault.Corrupt) {
		t.Errorf("an unreadable block: %v", err)
	}
	must(t, h.WriteAt(filled(4, 1), 0))
	must(t, h.ReadAt(p, 0))

	d.Plan(FailFlush, 1)
	if err := h.Flush(); !fault.Is(err, fault.Failed) {
		t.Errorf("a failing flush: %v", err)
	}
	if err := h.WriteAt(filled(1, 1), 0); !fault.Is(err, fault.Failed) || !d.Broken() {
		t.Error("a failure was forgotten")
	}
	must(t, h.ReadAt(p, 0))
	must(t, d.Open().WriteAt(filled(1, 1), 0))
}

// TestSpace has a filesystem that runs full and gets room again.
func TestSpace(t *testing.T) {
	d := NewWorld().NewDisk("a", 1<<20, rand.New(rand.NewPCG(1, 1)))
	h := d.Open()
	d.SetSpace(64 << 10)
	must(t, h.Reserve(0, 64<<10))
	if err := h.Reserve(64<<10, drive.BlockSize); !fault.Is(err, fault.Full) {
		t.Errorf("beyond the space: %v", err)
	}
	must(t, h.WriteAt(filled(1, 16), 0))
	if err := h.WriteAt(filled(1, 1), 64<<10); !fault.Is(err, fault.Full) || d.Broken() {
		t.Errorf("a write without space: %v", err)
	}
	d.SetSpace(-1)
	must(t, h.WriteAt(filled(1, 1), 64<<10))
	for d.Space() > 64<<10 { // a hint may be ignored
		must(t, h.Discard(64<<10, drive.BlockSize))
	}
}

// TestBounds refuses what a real drive would.
func TestBounds(t *testing.T) {
	h := NewWorld().NewDisk("a", 1<<20, rand.New(rand.NewPCG(1, 1))).Open()
	for name, call := range map[string]func(){
		"offset":  func() { _ = h.ReadAt(bufpool.Aligned(drive.BlockSize), 512) },
		"length":  func() { _ = h.ReadAt(bufpool.Aligned(512), 0) },
		"end":     func() { _ = h.WriteAt(filled(1, 1), 1<<20) },
		"memory":  func() { _ = h.ReadAt(bufpool.Aligned(2 * drive.BlockSize)[512:512+drive.BlockSize], 0) },
		"reserve": func() { _ = h.Reserve(-drive.BlockSize, drive.BlockSize) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("taken")
				}
			}()
			call()
		})
	}
}
