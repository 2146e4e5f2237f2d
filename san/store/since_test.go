package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store/format"
)

// dumbTrims is what trims say, block by block.
type dumbTrims struct {
	gens  []uint64 // of each block's newest trim
	floor uint64
}

// TestTrimsAgainstTwin holds the list of trims against one that knows each
// block: what it says covers the twin's, exactly while it has room.
func TestTrimsAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SampledFrom([]uint64{16, 300, 40_000}).Draw(t, "blocks")
		n := rapid.IntRange(1, 40).Draw(t, "operations")
		if rapid.IntRange(0, 9).Draw(t, "crowd") == 0 {
			n = 3000
		}
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		list, twin := trims{tracked: true}, dumbTrims{gens: make([]uint64, blocks)}
		joined := false
		for gen := uint64(1); gen <= uint64(n); gen++ {
			from := r.Uint64N(blocks)
			to := min(blocks, from+1+r.Uint64N(1+r.Uint64N(8)))
			list.note(from, to, gen)
			for b := from; b < to; b++ {
				twin.gens[b] = gen
			}
			joined = joined || len(list.list) == format.TrimsMax
			if r.IntN(30) == 0 {
				base := r.Uint64N(gen + 1)
				list.setBase(base)
				twin.floor = max(twin.floor, base)
			}
			if n < 100 || gen%500 == 0 {
				compareTrims(t, &list, &twin, max(list.floor, r.Uint64N(gen+1)), joined)
			}
		}
		back := decodeTrims(list.format())
		if !slices.Equal(back.list, list.list) || back.base != list.base || !back.tracked {
			t.Fatal("it does not come back from its stored form")
		}
		list.clearBase()
		if list.tracked || len(list.list) > 0 || list.floor < slices.Max(twin.gens) {
			t.Fatalf("without a base there is %+v", list)
		}
	})
}

func compareTrims(t *rapid.T, list *trims, twin *dumbTrims, since uint64, joined bool) {
	if len(list.list) > format.TrimsMax || list.floor > twin.floor {
		t.Fatalf("%d ranges, and a floor of %d for bases up to %d", len(list.list), list.floor, twin.floor)
	}
	said := make([]bool, len(twin.gens))
	end := uint64(0)
	for i, s := range list.since(since, 0, uint64(len(said))) {
		if s.from >= s.to || s.from < end || i > 0 && s.from == end {
			t.Fatalf("range %+v after %d", s, end)
		}
		for end = s.from; end < s.to; end++ {
			said[end] = true
		}
	}
	for b, gen := range twin.gens {
		if gen > since && !said[b] {
			t.Fatalf("block %d was trimmed by %d and is not among those since %d", b, gen, since)
		}
		if gen <= since && said[b] && !joined {
			t.Fatalf("block %d was trimmed by %d and is among those since %d", b, gen, since)
		}
	}
}

// TestTrimsJoinTheClosest overfills the list and sees which ranges it joins.
func TestTrimsJoinTheClosest(t *testing.T) {
	l := trims{tracked: true}
	for i := range uint64(format.TrimsMax) {
		l.note(10*i, 10*i+1, i+1)
	}
	l.note(5003, 5004, 5000) // two blocks behind another one
	if len(l.list) != format.TrimsMax || !slices.Contains(l.list, trimmed{5000, 5004, 5000}) {
		t.Fatalf("%d ranges, around there: %v", len(l.list), l.since(0, 4990, 5020))
	}
	l.note(1<<30, 1<<30+1, 5001) // that leaves a smaller gap behind it, and then all are alike
	l.note(1<<31, 1<<31+1, 5002)
	if !slices.Contains(l.list, trimmed{0, 11, 2}) {
		t.Fatalf("the oldest ranges were not joined: %v", l.since(0, 0, 30))
	}
}

// tell returns what has changed since a position, as "offset+length" in blocks.
func (l *line) tell(since LSN) string {
	l.Helper()
	var out []string
	must(l, l.p.ChangedSince("v", since, func(r Range) bool {
		out = append(out, fmt.Sprintf("%d+%d", r.Offset/block.BlockSize, r.Length/block.BlockSize))
		return true
	}))
	return fmt.Sprint(out)
}

func (l *line) open() *Volume {
	l.Helper()
	v, err := l.p.OpenVolume("v")
	must(l, err)
	return v
}

// TestChangedSince follows one volume through all that can change it.
func TestChangedSince(t *testing.T) {
	l := newLine(t, 0)
	const k = block.BlockSize
	must(t, l.p.SetBase("v", l.p.Position()))
	start := l.p.Position()
	l.write(0, 20)
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"nothing", func() {}, "[]"},
		{"writes", func() { l.write(3, 5); l.write(9, 10) }, "[3+2 9+1]"},
		{"a trim that leaves no entry", func() { must(t, l.open().Trim(4*k, 2*k)) }, "[4+2]"},
		{"a trim of holes", func() { must(t, l.open().Trim(4*k, 2*k)) }, "[]"},
		{"written and trimmed again", func() { l.write(4, 5); must(t, l.open().Trim(4*k, k)) }, "[4+1]"},
		{"zeros", func() { must(t, l.open().WriteAt(make([]byte, 2*k), 6*k, 0)) }, "[6+2]"},
		{"a part of a block", func() { must(t, l.open().Zero(8*k+512, 512, 0)) }, "[8+1]"},
		{"a copy", func() { must(t, l.open().CopyFrom(10*k, l.open(), 0, 2*k, 0)) }, "[10+2]"},
		{"a copy of holes", func() { must(t, l.open().CopyFrom(12*k, l.open(), 4*k, 2*k, 0)) }, "[12+2]"},
		{"a snapshot", func() { l.snapshot("s") }, "[]"},
		{"a trim over a snapshot", func() { must(t, l.open().Trim(14*k, k)) }, "[14+1]"},
		{"a snapshot deleted", func() { l.remove("s"); idle(t, l.p) }, "[]"},
		{"growing", func() {
			size := int64(2 * VolumeSizeMin)
			_, err := l.p.ChangeVolume("v", VolumeChange{Size: &size})
			must(t, err)
		}, "[]"},
		{"a rollback", func() { l.snapshot("r"); l.back("r") }, "[0+512]"},
		{"a write after it", func() { l.write(16, 17) }, "[16+1]"},
		{"a crash after a trim", func() { must(t, l.open().Trim(17*k, k)); l.reopen(true) }, "[17+1]"},
		{"a restart after a trim", func() { must(t, l.open().Trim(18*k, k)); l.reopen(false) }, "[18+1]"},
	} {
		since := l.p.Position()
		step.do()
		if got := l.tell(since); got != step.want {
			t.Errorf("%s: %s changed, want %s", step.name, got, step.want)
		}
	}
	if base, ok := l.p.Base("v"); base != start-1 || !ok { // setting it was a change, too
		t.Errorf("the base is %d (%v), want %d", base, ok, start-1)
	}
	if got := l.tell(start); got != "[0+512]" {
		t.Errorf("%s changed since the base", got)
	}
}

// TestBases says when a position is refused, and that an untracked volume keeps
// nothing.
func TestBases(t *testing.T) {
	l := newLine(t, 0)
	ask := func(since LSN) error { return l.p.ChangedSince("v", since, func(Range) bool { return true }) }
	stale := func(since LSN) {
		t.Helper()
		if err := ask(since); !fault.Is(err, fault.Stale) {
			t.Errorf("since %d: %v", since, err)
		}
	}
	l.write(0, 10)
	before := l.p.Position()
	must(t, ask(before)) // nothing was trimmed yet, so nothing is unknown
	must(t, l.open().Trim(0, block.BlockSize))
	stale(before)
	if n := len(l.p.cat.byName["v"].trims.list); n > 0 {
		t.Errorf("an untracked volume keeps %d trims", n)
	}
	base := l.p.Position()
	must(t, l.p.SetBase("v", base))
	must(t, ask(base))
	must(t, l.open().Trim(4096, block.BlockSize))
	later := l.p.Position()
	must(t, l.p.SetBase("v", later))
	must(t, ask(later))
	stale(base)
	must(t, l.p.SetBase("v", base)) // older is safe, and does not bring trims back
	stale(base)
	stale(l.p.Position() + 1)
	if err := l.p.SetBase("v", l.p.Position()+1); !fault.Is(err, fault.Invalid) {
		t.Errorf("a base in the future: %v", err)
	}
	l.reopen(true)
	if got, ok := l.p.Base("v"); got != base || !ok {
		t.Errorf("after a crash the base is %d (%v), want %d", got, ok, base)
	}
	must(t, l.p.ClearBase("v"))
	l.reopen(false)
	if _, ok := l.p.Base("v"); ok {
		t.Error("a base that was cleared is back")
	}
	l.snapshot("s")
	old := l.p.Position()
	_, err := l.p.Clone("v", "s", "c")
	must(t, err)
	if err := l.p.ChangedSince("c", old, func(Range) bool { return true }); !fault.Is(err, fault.Stale) {
		t.Errorf("what changed in a clone since before it was made: %v", err)
	}
}

// TestPositionsOutliveLostLives opens a pool again and again, and loses what each
// life wrote: no position may come again.
func TestPositionsOutliveLostLives(t *testing.T) {
	l := newLine(t, 0)
	on := true
	_, err := l.p.ChangeVolume("v", VolumeChange{WriteCache: &on})
	must(t, err)
	must(t, l.p.SetBase("v", l.p.Position()))
	last := LSN(0)
	for range 4 {
		for b := range uint64(3) {
			l.write(b, b+1)
			must(t, l.p.SetBase("v", l.p.Position()))
		}
		seen := l.p.Position()
		l.world.PowerLoss(l.r)
		l.d.Drive = l.disk.Open()
		l.p, err = Open(l.opt, []NamedDrive{l.d})
		must(t, err)
		if now := l.p.Position(); now < seen || seen <= last {
			t.Fatalf("a life that had come to %d is followed by one that begins at %d", seen, now)
		}
		last = seen
		l.write(7, 8)
		if got := l.tell(seen); got != "[7+1]" {
			t.Fatalf("since %d, in the life before: %s", seen, got)
		}
	}
}

// TestChangedSinceLeaps asks a huge volume, of which all was replaced.
func TestChangedSinceLeaps(t *testing.T) {
	l := newLine(t, 0)
	size := int64(VolumeSizeMax)
	_, err := l.p.ChangeVolume("v", VolumeChange{Size: &size})
	must(t, err)
	must(t, l.p.SetBase("v", l.p.Position()))
	since := l.p.Position()
	l.snapshot("s")
	l.back("s")
	must(t, l.open().WriteAt(bytes.Repeat([]byte{1}, 4096), size/2, 0))
	must(t, l.open().Trim(size/2, 4096))
	if got, want := l.tell(since), fmt.Sprintf("[0+%d]", size/4096); got != want {
		t.Fatalf("%s changed, want %s", got, want)
	}
}

// TestChangedSinceWhileWritten asks while others write, trim, and maintain:
// whatever was answered before the call must be said.
func TestChangedSinceWhileWritten(t *testing.T) {
	l := newLine(t, 0)
	const blocks = 8000
	size, on := int64(blocks*block.BlockSize), true
	_, err := l.p.ChangeVolume("v", VolumeChange{Size: &size, WriteCache: &on})
	must(t, err)
	v := l.open()
	for b := int64(0); b < blocks; b += 100 {
		must(t, v.WriteAt(stamp(100*block.BlockSize, uint64(b)), b*block.BlockSize, 0))
	}
	must(t, l.p.SetBase("v", l.p.Position()))
	since := l.p.Position()
	var mu sync.Mutex
	done := make([]bool, blocks)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range uint64(3) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(i, 9))
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				b := r.Int64N(blocks)
				var err error
				if i == 0 && n%64 == 0 {
					_, err = l.p.Maintain()
				}
				switch {
				case err != nil:
				case r.IntN(4) == 0:
					err = v.Trim(b*block.BlockSize, block.BlockSize)
				default:
					err = v.WriteAt(stamp(block.BlockSize, n), b*block.BlockSize, 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				done[b] = true
				mu.Unlock()
			}
		})
	}
	for range 150 {
		mu.Lock()
		must := slices.Clone(done)
		mu.Unlock()
		err := l.p.ChangedSince("v", since, func(r Range) bool {
			clear(must[r.Offset/block.BlockSize : (r.Offset+r.Length)/block.BlockSize])
			return true
		})
		if b := slices.Index(must, true); b >= 0 || err != nil {
			t.Errorf("block %d was changed before the call and not said (%v)", b, err)
			break
		}
	}
	close(stop)
	wg.Wait()
}
