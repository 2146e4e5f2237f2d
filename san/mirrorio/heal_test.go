package mirrorio

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// damagedPair is a pair with something in its first blocks.
func damagedPair(t *testing.T) (p *pair, a, b *memory, want []byte) {
	p = newPair(t)
	want = bytes.Repeat([]byte("kept"), 4*BlockSize/4)
	if err := p.volume("a").WriteAt(want, 0, 0); err != nil {
		t.Fatal(err)
	}
	return p, p.disks["a"].(*memory), p.disks["b"].(*memory), want
}

func damage(blocks ...int64) map[int64]bool {
	m := map[int64]bool{}
	for _, b := range blocks {
		m[b] = true
	}
	return m
}

// TestHealRead reads what the owner cannot read, and finds it healed.
func TestHealRead(t *testing.T) {
	p, a, _, want := damagedPair(t)
	a.set(func() { a.bad, a.data[BlockSize] = damage(1, 3), 'x' })
	got := make([]byte, len(want)-512)
	if err := p.volume("a").ReadAt(got, 512); err != nil || !bytes.Equal(got, want[512:]) {
		t.Fatalf("a read of damaged blocks: %v", err)
	}
	if at, err := p.volume("a").CompareAndWrite(0, want[:512], make([]byte, 512), 0); at != -1 || err != nil {
		t.Errorf("a comparison afterwards: differs at %d, %v", at, err)
	}
	a.set(func() {
		if len(a.bad) != 0 || !slices.Equal(a.healed, []error{nil}) {
			t.Errorf("blocks %v are damaged still; told %v", a.bad, a.healed)
		}
	})
	p.equal()
	if s := p.groups["a"].Status(); s.HealedBytes != 3*BlockSize {
		t.Errorf("%d bytes healed: from the first to the last are three blocks", s.HealedBytes)
	}
}

// TestHealNeither has both nodes damaged: the client gets the error, and both
// nodes stay.
func TestHealNeither(t *testing.T) {
	p, a, b, want := damagedPair(t)
	for _, s := range []*memory{a, b} {
		s.set(func() { s.bad = damage(1) })
	}
	if err := p.volume("a").ReadAt(make([]byte, len(want)), 0); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a read of what neither has: %v", err)
	}
	if _, err := p.volume("a").CompareAndWrite(BlockSize, want[:512], want[:512], 0); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a comparison with what neither has: %v", err)
	}
	if err := p.volume("a").WriteAt(want[:512], BlockSize+512, 0); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a write of a part of what neither has: %v", err)
	}
	if err := p.volume("a").WriteAt(want[:BlockSize], BlockSize, 0); err != nil {
		t.Errorf("a write of all of it: %v", err)
	}
	if err := p.volume("a").ReadAt(make([]byte, len(want)), 0); err != nil {
		t.Errorf("a read afterwards: %v", err)
	}
	p.equal()
	if g := p.state().Group["g"]; len(g.Set) != 2 {
		t.Errorf("%d entries", len(g.Set))
	}
}

// TestHealWrite writes parts of blocks that one node cannot read.
func TestHealWrite(t *testing.T) {
	for _, who := range []quorum.Member{"a", "b"} {
		t.Run(string(who), func(t *testing.T) {
			p, _, _, want := damagedPair(t)
			s := p.disks[who].(*memory)
			s.set(func() { s.bad, s.data[3*BlockSize] = damage(1, 3), 'x' })
			part := bytes.Repeat([]byte{7}, BlockSize)
			for _, off := range []int64{BlockSize + 512, 2*BlockSize + 512} {
				if err := p.volume("a").WriteAt(part, off, 0); err != nil {
					t.Fatal(err)
				}
				copy(want[off:], part)
			}
			p.equal()
			got := make([]byte, len(want))
			if err := p.volume("a").ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("a read afterwards: %v", err)
			}
			s.set(func() {
				if len(s.bad) != 0 {
					t.Errorf("blocks %v are damaged still", s.bad)
				}
			})
		})
	}
}

// TestHealScrub has either node heal what its scrubber found.
func TestHealScrub(t *testing.T) {
	for _, who := range []quorum.Member{"a", "b"} {
		t.Run(string(who), func(t *testing.T) {
			p, _, _, _ := damagedPair(t)
			s := p.disks[who].(*memory)
			s.set(func() { s.bad, s.data[2*BlockSize] = damage(2), 'x' })
			p.groups[who].Heal(0, 2*BlockSize+512, 1024)
			p.await("healed", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.bad) == 0 && len(s.healed) == 1
			})
			p.equal()
		})
	}
}

// TestResyncOfDamage resyncs what the owner cannot read: the rest is served, and
// when it is written anew the resync ends.
func TestResyncOfDamage(t *testing.T) {
	p, a, _, want := damagedPair(t)
	p.stop("b", false)
	if err := p.volume("a").WriteAt(want, 0, 0); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.bad = damage(1) })
	p.start("b")
	p.connect()
	p.await("it is stuck", func() bool {
		s := p.groups["a"].Status()
		return s.StuckBytes == BlockSize && s.LeftBytes == BlockSize && s.OutOfSyncBytes == BlockSize
	})
	if err := p.volume("a").ReadAt(want[:BlockSize], 0); err != nil {
		t.Errorf("a read of the rest: %v", err)
	}
	if err := p.volume("a").WriteAt(want[:BlockSize], BlockSize, 0); err != nil {
		t.Fatal(err)
	}
	p.inSync()
	p.equal()
}

// TestBrokenReads has the owner's drive fail: nobody is told so by a read, for the
// other node goes on.
func TestBrokenReads(t *testing.T) {
	p, a, _, want := damagedPair(t)
	a.set(func() { a.broken = true })
	if err := p.volume("a").ReadAt(make([]byte, len(want)), 0); !errors.Is(err, errMoved) {
		t.Errorf("a read of a broken drive: %v", err)
	}
	p.await("b owns it", func() bool { return p.groups["b"].Standing().Serving })
	if err := p.volume("b").ReadAt(make([]byte, len(want)), 0); err != nil {
		t.Error(err)
	}
	if s := p.groups["a"].Status(); !s.Broken {
		t.Errorf("%+v", s)
	}
}

// TestBrokenAlone has the only node's drive fail for a read: the client is told.
func TestBrokenAlone(t *testing.T) {
	p, a, _, want := damagedPair(t)
	p.stop("b", false)
	p.await("a is alone", func() bool { return len(p.groups["a"].Standing().Others) == 0 })
	a.set(func() { a.broken = true })
	if err := p.volume("a").ReadAt(make([]byte, len(want)), 0); !fault.Is(err, fault.Failed) {
		t.Errorf("a read of a broken drive: %v", err)
	}
	a.set(func() { a.broken = false })
	if err := p.volume("a").ReadAt(make([]byte, len(want)), 0); err != nil {
		t.Error(err)
	}
}

// TestPeerGone holds that a write that waits for a peer which is gone ends when
// the peer is removed.
func TestPeerGone(t *testing.T) {
	p, _, _, want := damagedPair(t)
	p.stop("b", true)
	began := time.Now()
	if err := p.volume("a").WriteAt(want, 0, 0); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > time.Second { // Silence is 250 ms, Retry 50
		t.Errorf("the write took %v", took)
	}
}

// TestHealMany has either node find far more than is healed at a time, the first half
// of which neither can read: the others have their turn.
func TestHealMany(t *testing.T) {
	for _, who := range []quorum.Member{"a", "b"} {
		t.Run(string(who), func(t *testing.T) {
			p, a, b, _ := damagedPair(t)
			if err := p.volume("a").WriteAt(bytes.Repeat([]byte("all!"), volumeBytes/4), 0, 0); err != nil {
				t.Fatal(err)
			}
			s := p.disks[who].(*memory)
			var all, lost []int64
			for block := int64(0); block < volumeBlocks; block += 2 {
				if all = append(all, block); block < volumeBlocks/2 {
					lost = append(lost, block)
				}
			}
			for _, d := range []*memory{a, b} {
				d.set(func() { d.bad = damage(lost...) })
			}
			s.set(func() { s.bad = damage(all...) })
			for _, block := range all {
				p.groups[who].Heal(0, block*BlockSize, BlockSize)
			}
			p.await("all have had their turn", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.healed) == len(all)
			})
			s.set(func() {
				failed := 0
				for _, err := range s.healed {
					if err != nil {
						failed++
					}
				}
				if len(s.bad) != len(lost) || failed != len(lost) {
					t.Errorf("%d blocks are damaged still, and of %d that was told; on both were %d", len(s.bad), failed, len(lost))
				}
			})
			if n := len(p.state().Group["g"].Set); n != 2 {
				t.Errorf("%d entries", n)
			}
		})
	}
}
