package mirrorio

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"steadfast/san/mirror"
)

// TestTryReadAt holds that a read without waiting is refused while a write of the
// same blocks is on one node only, and where nothing may be answered.
func TestTryReadAt(t *testing.T) {
	p := newPair(t)
	v, buf := p.volume("a"), make([]byte, BlockSize)
	p.await("a has b's promise", func() bool { return v.TryReadAt(buf, 0) })
	a, b := p.disks["a"].(*memory), p.disks["b"].(*memory)
	b.set(func() { b.absent = true })
	done := make(chan error)
	go func() { done <- v.WriteAt(filled(1, 1), 0, 0) }()
	p.await("it is on one node", func() bool { return a.content()[0] == 1 })
	if v.TryReadAt(buf, 0) {
		t.Error("read what the peer lacks")
	}
	b.set(func() {
		b.absent = false
		close(b.changes)
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.await("it is on both", func() bool { return v.TryReadAt(buf, 0) && buf[0] == 1 })
	if p.volume("b").TryReadAt(buf, 0) {
		t.Error("a node that is not the owner read")
	}
	a.set(func() { a.cold = true })
	if v.TryReadAt(buf, 0) {
		t.Error("read what is not in memory without waiting")
	}
}

// TestReadsAgainstWrites has readers past the core beside a writer: what they see
// is never older than what was acknowledged before they asked.
func TestReadsAgainstWrites(t *testing.T) {
	p := newPair(t)
	v := p.volume("a")
	var stop atomic.Bool
	var acknowledged, begun atomic.Uint64
	var workers sync.WaitGroup
	workers.Go(func() {
		buf := make([]byte, 2*BlockSize)
		for n := uint64(1); !stop.Load(); n++ {
			begun.Store(n)
			binary.LittleEndian.PutUint64(buf, n)
			binary.LittleEndian.PutUint64(buf[BlockSize:], n)
			if err := v.WriteAt(buf, 0, 0); err != nil {
				t.Error(err)
				return
			}
			acknowledged.Store(n)
		}
	})
	for i := range 2 {
		workers.Go(func() {
			buf := make([]byte, BlockSize)
			for !stop.Load() {
				least := acknowledged.Load()
				if err := v.ReadAt(buf, int64(i)*BlockSize); err != nil {
					t.Error(err)
					return
				}
				if n := binary.LittleEndian.Uint64(buf); n < least || n > begun.Load() {
					t.Errorf("read %d after %d was acknowledged, of %d begun", n, least, begun.Load())
					return
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	stop.Store(true)
	workers.Wait()
}

// TestUnderWay holds that what is at a stretch of a volume is not at another, and
// that what is at everything is at each.
func TestUnderWay(t *testing.T) {
	var u underWay
	one := &mirror.Op{Volume: 1, Block: stretchBlocks - 1, Count: 2}
	u.begin(one)
	for block, free := range map[uint64]bool{0: false, stretchBlocks: false, 2 * stretchBlocks: true} {
		if _, got := u.free(&mirror.Op{Volume: 1, Block: block, Count: 1}); got != free {
			t.Errorf("block %d: free %t", block, got)
		}
	}
	before, _ := u.free(&mirror.Op{Volume: 1, Block: 2 * stretchBlocks, Count: 1})
	u.end(one)
	for _, op := range []*mirror.Op{{}, {Volume: 7, Count: stretchBlocks * (stretchesMax + 1)}} {
		u.begin(op)
		if _, free := u.free(&mirror.Op{Volume: 1, Block: 2 * stretchBlocks, Count: 1}); free {
			t.Errorf("%+v is at nothing", op)
		}
		u.end(op)
	}
	if after, free := u.free(&mirror.Op{Volume: 1, Block: 2 * stretchBlocks, Count: 1}); !free || after == before {
		t.Error("what was at everything has left no trace")
	}
}
