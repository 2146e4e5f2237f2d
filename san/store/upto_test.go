package store

import (
	"fmt"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/fault"
)

// upTo returns what has changed from a position to a snapshot, by block.
func (l *line) upTo(since LSN, to string) map[uint64]bool {
	l.Helper()
	out := map[uint64]bool{}
	must(l, l.p.ChangedUpTo("v", since, to, func(r Range) bool {
		for b := r.Offset / block.BlockSize; b*block.BlockSize < r.Offset+r.Length; b++ {
			out[uint64(b)] = true
		}
		return true
	}))
	return out
}

// content returns the volume's blocks, or a snapshot's.
func (l *line) content(snapshot string) (out []string) {
	l.Helper()
	v, err := l.p.OpenVolume("v")
	if snapshot != "" {
		must(l, v.Close())
		v, err = l.p.OpenSnapshot("v", snapshot)
	}
	must(l, err)
	p := make([]byte, v.Size())
	must(l, v.ReadAt(p, 0))
	for ; len(p) > 0; p = p[block.BlockSize:] {
		out = append(out, string(p[:block.BlockSize]))
	}
	must(l, v.Close())
	return out
}

// TestChangedUpTo holds that all that differs between a position and a snapshot is
// listed, and nothing that was only written later.
func TestChangedUpTo(t *testing.T) {
	l := newLine(t, 0)
	const blocks = 64
	must(t, l.p.SetBase("v", l.p.Position()))
	l.write(0, blocks/2)
	for round := range 12 {
		since, before := l.p.Position(), l.content("")
		written, later := map[uint64]bool{}, map[uint64]bool{}
		change := func(note map[uint64]bool) {
			for range 1 + l.r.IntN(6) {
				b, n := l.r.Uint64N(blocks), 1+l.r.Uint64N(4)
				if l.r.IntN(3) == 0 {
					must(t, l.open().Trim(int64(b)*block.BlockSize, int64(n)*block.BlockSize))
				} else {
					l.write(b, b+n)
				}
				for i := b; i < b+n; i++ {
					note[i] = true
				}
			}
		}
		if round%3 == 0 {
			l.snapshot(fmt.Sprint("between", round))
		}
		change(written)
		name := fmt.Sprint("s", round)
		l.snapshot(name)
		change(later)
		if round%4 == 0 {
			l.reopen(round%8 == 0)
		}
		got, now := l.upTo(since, name), l.content(name)
		for b := range uint64(len(before)) {
			switch {
			case before[b] != now[b] && !got[b]:
				t.Errorf("round %d: block %d differs, and is not listed", round, b)
			case got[b] && !written[b] && !later[b]:
				t.Errorf("round %d: block %d is listed, and nobody touched it", round, b)
			}
		}
		if round%2 == 0 {
			l.remove(name)
			idle(t, l.p)
		}
	}
	since := l.p.Position()
	l.write(3, 5)
	l.snapshot("s")
	l.write(9, 10)
	if got := l.upTo(since, "s"); len(got) != 2 || !got[3] || !got[4] {
		t.Errorf("listed %v", got)
	}
	if err := l.p.ChangedUpTo("v", since, "none", func(Range) bool { return true }); !fault.Is(err, fault.NotFound) {
		t.Errorf("up to a snapshot that is not there: %v", err)
	}
	l.back("s")
	l.snapshot("after")
	if got := l.upTo(since, "s"); len(got) != VolumeSizeMin/block.BlockSize {
		t.Errorf("after a rollback %d blocks are listed", len(got))
	}
}

// TestSnapshotAs takes a snapshot that another pool took.
func TestSnapshotAs(t *testing.T) {
	l := newLine(t, 0)
	larger := int64(2 * VolumeSizeMin)
	_, err := l.p.ChangeVolume("v", VolumeChange{Size: &larger})
	must(t, err)
	if _, err := l.p.CreateSnapshotAs("v", SnapshotSpec{Name: "s", Size: larger + block.BlockSize}); !fault.Is(err, fault.Invalid) {
		t.Errorf("larger than the volume: %v", err)
	}
	_, err = l.p.CreateSnapshotAs("v", SnapshotSpec{Name: "s", Created: 12345, Size: VolumeSizeMin})
	must(t, err)
	for _, crash := range []bool{true, false} {
		l.reopen(crash)
		all, err := l.p.Snapshots("v")
		must(t, err)
		if len(all) != 1 || !all[0].Created.Equal(time.Unix(0, 12345)) || all[0].Size != VolumeSizeMin {
			t.Errorf("it is %+v", all)
		}
	}
}
