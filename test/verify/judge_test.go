package verify

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// history plays against a disk in memory that the test may bend.
type history struct {
	t     *testing.T
	judge *Judge
	data  []byte
}

func newHistory(t *testing.T) *history {
	const size = 16 * Block
	return &history{t, NewJudge(7, size), make([]byte, size)}
}

// write is an acknowledged write; it returns what lay there before.
func (h *history) write(off, n int64) (before []byte) {
	before = append(before, h.data[off:off+n]...)
	w := h.begin(off, n)
	h.judge.EndWrite(w, nil)
	return before
}

// begin is a write that landed and was not answered yet.
func (h *history) begin(off, n int64) *Write {
	buf := make([]byte, n)
	w := h.judge.BeginWrite(1, buf, off)
	copy(h.data[off:], buf)
	return w
}

func (h *history) read(off, n int64) {
	h.judge.EndRead(h.judge.BeginRead(off, n), h.data[off:off+n], nil)
}

// want fails unless exactly these were found, one of each.
func (h *history) want(want ...Kind) {
	h.t.Helper()
	var counts Counts
	for _, k := range want {
		counts[k]++
	}
	if got := h.judge.Counts(); got != counts {
		h.t.Errorf("found %v, want %v: %v", got, counts, h.judge.Findings())
	}
}

// TestJudgeFinds has one history for each way of being wrong, and for each a
// neighbor that is right.
func TestJudgeFinds(t *testing.T) {
	for name, play := range map[string]func(h *history){
		"right: never written": func(h *history) {
			h.read(0, 4*Block)
			h.want()
		},
		"right: written and read": func(h *history) {
			h.write(0, 3*Block)
			h.write(Block+512, 1024)
			h.read(0, 4*Block)
			h.read(Block, 512)
			h.read(Block+512, 512)
			h.want()
		},
		"lost: zeros where a write was acknowledged": func(h *history) {
			h.write(0, Block)
			clear(h.data)
			h.read(0, Block)
			h.want(Lost)
		},
		"lost: the write before": func(h *history) {
			h.write(0, Block)
			copy(h.data, h.write(0, Block))
			h.read(0, Block)
			h.read(0, Block) // once is enough
			h.want(Lost)
		},
		"lost: one sector's write": func(h *history) {
			h.write(0, Block)
			copy(h.data[512:], h.write(512, 512))
			h.read(0, Block)
			h.want(Lost)
		},
		"right: a write that was not acknowledged is not there": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data...)
			h.begin(0, Block)
			copy(h.data, before)
			h.read(0, Block)
			h.want()
		},
		"stale: what a read had returned is gone": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data...)
			h.begin(0, Block) // in flight
			h.read(0, Block)  // returns it
			copy(h.data, before)
			h.read(0, Block) // and it is gone
			h.want(Stale)
		},
		"right: reads that overlap may differ either way": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data[:Block]...)
			early := h.judge.BeginRead(0, Block)
			h.begin(0, Block)
			h.read(0, Block)
			h.judge.EndRead(early, before, nil)
			h.want()
		},
		"stale: an old read of something read before it began": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data[:Block]...)
			h.begin(0, Block)
			h.read(0, Block)
			late := h.judge.BeginRead(0, Block)
			h.judge.EndRead(late, before, nil)
			h.want(Stale)
		},
		"right: a read under way for many writes": func(h *history) {
			h.write(0, Block)
			slow := h.judge.BeginRead(0, Block)
			h.write(0, Block)
			third := append([]byte(nil), h.data[:Block]...)
			h.write(512, 512)
			h.judge.EndRead(slow, third, nil)
			h.want()
		},
		"reordering: the writes landed in the other order": func(h *history) {
			h.write(0, Block)
			first := h.begin(0, Block)
			landed := append([]byte(nil), h.data[:Block]...)
			h.judge.EndWrite(first, nil)
			h.write(0, Block)
			copy(h.data, landed)
			h.read(0, Block)
			h.want(Lost)
		},
		"torn: half of a write in flight": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data[:Block]...)
			h.begin(0, Block)
			copy(h.data[Block/2:], before[Block/2:])
			h.read(0, Block)
			h.want(Torn)
		},
		"right: blocks of one write land apart": func(h *history) {
			h.write(0, 2*Block)
			before := append([]byte(nil), h.data[:2*Block]...)
			h.begin(0, 2*Block)
			copy(h.data[Block:], before[Block:])
			h.read(0, 2*Block)
			h.want()
		},
		"corrupt: inside of a sector": func(h *history) {
			h.write(0, Block)
			h.data[700] ^= 1
			h.read(0, Block)
			h.want(Corrupt)
		},
		"corrupt: a good block of another place": func(h *history) {
			h.write(0, 2*Block)
			copy(h.data, h.data[Block:2*Block])
			h.read(0, Block)
			h.want(Corrupt)
		},
		"corrupt: of another disk": func(h *history) {
			h.write(0, Block)
			other := NewJudge(8, 16*Block)
			other.run = h.judge.run
			other.BeginWrite(1, h.data[:Block], 0)
			h.read(0, Block)
			h.want(Corrupt)
		},
		"lost: what an earlier run wrote": func(h *history) {
			NewJudge(7, 16*Block).BeginWrite(1, h.data[:2*Block], 0)
			h.read(0, Block)
			h.want()
			old := h.write(0, 2*Block)
			copy(h.data, old)
			h.read(0, Block)
			h.want(Lost)
		},
		"corrupt: a version that wrote another sector": func(h *history) {
			h.write(0, Block)
			h.write(0, 512)
			Stamp{Run: h.judge.run, Disk: 7, Lane: 1, Sector: 2, Version: 2}.put(h.data[1024:])
			h.read(0, Block)
			h.want(Corrupt)
		},
		"right: a failed write is not there, and a part was written since": func(h *history) {
			h.write(0, Block)
			before := append([]byte(nil), h.data[:Block]...)
			h.judge.EndWrite(h.begin(0, Block), errors.New("no"))
			copy(h.data, before)
			h.read(0, Block)
			h.write(512, 512)
			h.read(0, Block)
			h.want(Failed)
		},
		"right: a failed write is there, and a part was written since": func(h *history) {
			h.write(0, Block)
			h.judge.EndWrite(h.begin(0, Block), errors.New("no"))
			h.write(512, 512)
			h.read(0, Block)
			h.want(Failed)
		},
		"lost: what was written after a failed write": func(h *history) {
			h.write(0, Block)
			h.judge.EndWrite(h.begin(0, 1024), errors.New("no"))
			copy(h.data[512:], h.write(512, 512))
			h.read(0, Block)
			h.want(Failed, Lost)
		},
		"torn: long after a failed write": func(h *history) {
			h.judge.EndWrite(h.begin(0, Block), errors.New("no"))
			h.write(0, Block)
			before := append([]byte(nil), h.data[:Block]...)
			h.begin(0, Block)
			copy(h.data[Block/2:], before[Block/2:])
			h.read(0, Block)
			h.want(Failed, Torn)
		},
		"errors": func(h *history) {
			err := errors.New("input/output error")
			h.judge.EndWrite(h.begin(0, Block), err)
			h.judge.EndRead(h.judge.BeginRead(0, Block), nil, err)
			h.judge.Flushed(err)
			h.want(Failed, Failed, Failed)
			h.read(0, Block) // the write came after all
			h.want(Failed, Failed, Failed)
		},
	} {
		t.Run(name, func(t *testing.T) { play(newHistory(t)) })
	}
}

// TestJudgeAgainstRight: whatever a right disk may answer is clean, over many
// random histories with reads and writes under way at once.
func TestJudgeAgainstRight(t *testing.T) {
	for seed := range uint64(400) {
		fails, failures := seed%2 == 1, 0 // writes that fail may land or not
		rng := rand.New(rand.NewPCG(seed, 5))
		h := newHistory(t)
		type pending struct {
			w   *Write
			buf []byte
			off int64
		}
		var writes []pending
		busy := map[int64]bool{}
		type reading struct {
			r   *Read
			off int64
		}
		var reads []reading
		land := func(p pending) { // block by block is atomic, all at once is simplest
			copy(h.data[p.off:], p.buf)
		}
		for range 400 {
			off := rng.Int64N(14*sectorsPerBlock) * Sector
			n := (1 + rng.Int64N(12)) * Sector
			switch rng.IntN(4) {
			case 0:
				first, end := span(off, n)
				free := true
				for b := first; b < end; b++ {
					free = free && !busy[b]
				}
				if !free {
					continue
				}
				for b := first; b < end; b++ {
					busy[b] = true
				}
				buf := make([]byte, n)
				writes = append(writes, pending{h.judge.BeginWrite(2, buf, off), buf, off})
			case 1:
				if len(writes) == 0 {
					continue
				}
				p := writes[0]
				writes = writes[1:]
				var err error
				if fails && rng.IntN(3) == 0 {
					err = errors.New("no")
					failures++
				}
				if err == nil || rng.IntN(2) == 0 {
					land(p)
				}
				h.judge.EndWrite(p.w, err)
				first, end := span(p.off, int64(len(p.buf)))
				for b := first; b < end; b++ {
					delete(busy, b)
				}
			case 2:
				n = min(n, int64(len(h.data))-off)
				reads = append(reads, reading{h.judge.BeginRead(off, n), off})
			case 3: // answers what is there now, which is some time between begin and end
				if len(reads) == 0 {
					continue
				}
				r := reads[0]
				reads = reads[1:]
				h.judge.EndRead(r.r, h.data[r.off:r.off+r.r.n], nil)
			}
		}
		if got := h.judge.Counts(); got != (Counts{Failed: failures}) {
			t.Fatalf("seed %d: %v: %v", seed, got, h.judge.Findings())
		}
	}
}

// TestJudgeAgainstLossy: over random histories, a disk that forgets one
// acknowledged write to a block is always found out by reading all.
func TestJudgeAgainstLossy(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 6))
		h := newHistory(t)
		for range 100 {
			off := rng.Int64N(14*sectorsPerBlock) * Sector
			h.write(off, (1+rng.Int64N(12))*Sector)
			h.read(0, int64(len(h.data)))
		}
		h.want()
		off := rng.Int64N(14*sectorsPerBlock) * Sector
		n := (1 + rng.Int64N(12)) * Sector
		copy(h.data[off:], h.write(off, n))
		h.read(0, int64(len(h.data)))
		first, end := span(off, n)
		if got := h.judge.Counts().Of(Lost); got != int(end-first) {
			t.Fatalf("seed %d: %d lost of %d: %v", seed, got, end-first, h.judge.Findings())
		}
	}
}
