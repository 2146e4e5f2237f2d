package store

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// line is a pool with one volume of some blocks, of which rollbacks are made.
type line struct {
	testing.TB
	opt    Options // one: identifiers must not come again
	world  *drivetest.World
	disk   *drivetest.Disk
	d      NamedDrive
	p      *Pool
	blocks uint64
	stamps uint64
	r      *rand.Rand
}

func newLine(t testing.TB, blocks uint64) *line {
	world := drivetest.NewWorld()
	disk := world.NewDisk("a", 128<<20, rand.New(rand.NewPCG(1, 2)))
	l := &line{TB: t, opt: options(), world: world, disk: disk, r: rand.New(rand.NewPCG(5, 6)), d: NamedDrive{Name: "a", Drive: disk.Open()}, blocks: blocks}
	var err error
	l.p, err = Create("pool", l.opt, []NamedDrive{l.d})
	must(t, err)
	_, err = l.p.CreateVolume(VolumeSpec{Name: "v", Size: VolumeSizeMin})
	must(t, err)
	return l
}

// write overwrites blocks [from, to) with something new.
func (l *line) write(from, to uint64) {
	l.Helper()
	v, err := l.p.OpenVolume("v")
	must(l, err)
	for b := from; b < to; b++ {
		l.stamps++
		must(l, v.WriteAt(stamp(block.BlockSize, l.stamps), int64(b)*block.BlockSize, 0))
	}
	must(l, v.Close())
}

func (l *line) snapshot(name string) {
	l.Helper()
	_, err := l.p.CreateSnapshot("v", name)
	must(l, err)
}

func (l *line) remove(name string) { l.Helper(); must(l, l.p.DeleteSnapshot("v", name)) }
func (l *line) back(name string)   { l.Helper(); must(l, l.p.Rollback("v", name)) }

// reopen closes the pool, or leaves it as a crash does, and opens it again.
func (l *line) reopen(crash bool) {
	l.Helper()
	if !crash {
		must(l, l.p.Close())
	}
	sound(l, l.d)
	var err error
	l.p, err = Open(l.opt, []NamedDrive{l.d})
	must(l, err)
}

// holds demands that a pool at rest stores so many blocks, in one line of so
// many branches, and that it is sound.
func (l *line) holds(blocks, branches int) {
	l.Helper()
	audit(l, l.p)
	idle(l, l.p)
	audit(l, l.p)
	if got := l.p.Status().Data / block.BlockSize; got != int64(blocks) {
		l.Fatalf("the pool stores %d blocks, want %d", got, blocks)
	}
	if got := len(l.p.cat.branches); got != branches {
		l.Fatalf("the pool has %d branches, want %d", got, branches)
	}
}

// rolledBlocks is what the volume of the rollbacks has.
const rolledBlocks = 200

// rollbacks overwrite all of a volume that was rolled back to snapshot s, and
// delete s, and what other snapshots they make. A snapshot of the old line after
// s is there too.
var rollbacks = []struct {
	name string
	run  func(l *line)
}{
	{"overwritten after", func(l *line) {
		l.remove("s")
		idle(l, l.p)
		l.write(0, rolledBlocks)
	}},
	{"overwritten before", func(l *line) {
		l.write(0, rolledBlocks)
		l.remove("s")
	}},
	{"overwritten meanwhile", func(l *line) {
		l.write(0, rolledBlocks/2)
		l.halfway("s")
		l.write(rolledBlocks/3, rolledBlocks)
	}},
	{"the old line goes first", func(l *line) {
		l.write(0, rolledBlocks)
		l.remove("s")
		l.remove("later")
		idle(l, l.p)
		l.snapshot("later") // of the new line
	}},
	{"snapshots of the new line", func(l *line) {
		l.snapshot("x")
		l.write(0, rolledBlocks/2)
		l.snapshot("y")
		l.remove("s")
		l.write(0, rolledBlocks)
		idle(l, l.p)
		l.remove("y")
		idle(l, l.p)
		l.remove("x")
	}},
	{"two rollbacks in a row", func(l *line) {
		l.write(0, 3)
		l.snapshot("x")
		l.back("x")
		l.remove("s")
		l.remove("x")
		idle(l, l.p)
		l.write(0, rolledBlocks)
	}},
	{"two rollbacks to one snapshot", func(l *line) {
		l.write(0, rolledBlocks)
		l.snapshot("x")
		l.back("s")
		l.write(0, rolledBlocks)
		l.remove("s")
		idle(l, l.p)
		l.remove("x")
	}},
	{"trimmed and written", func(l *line) {
		l.remove("s")
		must(l, l.change("v", func(v *Volume) error { return v.Trim(0, rolledBlocks*block.BlockSize) }))
		l.write(0, rolledBlocks)
	}},
	{"crashes before the end", func(l *line) {
		l.write(0, rolledBlocks/2)
		l.halfway("s")
		l.write(rolledBlocks/3, rolledBlocks/2)
		must(l, l.checkpoint())
		l.halfway("")
		l.write(rolledBlocks/2, rolledBlocks)
		l.reopen(true)
		audit(l, l.p)
		l.halfway("")
		l.reopen(true)
	}},
}

// TestRollbackGivesBack rolls a volume back, deletes the snapshots and
// overwrites everything: one copy is stored, and the volume stands on nothing any
// more.
func TestRollbackGivesBack(t *testing.T) {
	const n = rolledBlocks
	for _, test := range rollbacks {
		t.Run(test.name, func(t *testing.T) {
			l := newLine(t, n)
			l.write(0, n)
			l.snapshot("s")
			l.write(0, n/3)
			l.snapshot("later")
			l.back("s")
			test.run(l)
			l.remove("later")
			l.holds(n, 1)
			l.reopen(false)
			l.holds(n, 1)
			must(t, l.p.DeleteVolume("v", true))
			l.holds(0, 0)
			must(t, l.p.Close())
			sound(t, l.d)
		})
	}
}

// TestRollbackShares keeps a snapshot of the old line, taken after the one that
// the volume was rolled back to: what the two lines both hide goes, and no more.
func TestRollbackShares(t *testing.T) {
	l := newLine(t, 100)
	l.write(0, 100)
	l.snapshot("s")
	l.write(0, 60)
	l.snapshot("later")
	l.back("s")
	l.write(50, 100)
	l.remove("s")
	l.holds(100+60-10+50, 2) // 10 blocks of the first hundred are hidden from both
	l.write(0, 100)
	l.holds(100+100, 2)
	l.remove("later")
	l.holds(100, 1)
	must(t, l.p.Close())
	sound(t, l.d)
}

// TestRollbackOften does so again and again, and lookups do not get longer.
func TestRollbackOften(t *testing.T) {
	l := newLine(t, 50)
	for i := range 20 {
		l.write(0, 50)
		l.snapshot("s")
		l.back("s")
		l.write(uint64(i), 50)
		l.back("s")
		l.remove("s")
		l.holds(50, 2)
	}
	must(t, l.p.Close())
	sound(t, l.d)
}

// TestReadBesideRollback reads while the line below a volume is overwritten:
// every read finds what was there before or after, and never nothing.
func TestReadBesideRollback(t *testing.T) {
	l := newLine(t, 200)
	for range 10 {
		l.write(0, 200)
		l.snapshot("s")
		l.back("s")
		l.remove("s")
		idle(t, l.p)
		stop, result := make(chan struct{}), make(chan error, 1)
		go func() { result <- readUntil(l.p, stop) }()
		l.write(0, 200)
		close(stop)
		must(t, <-result)
	}
	must(t, l.p.Close())
}

// readUntil reads the volume over and over, and demands that no block is zero.
func readUntil(p *Pool, stop chan struct{}) error {
	v, err := p.OpenVolume("v")
	if err != nil {
		return err
	}
	buf := bufpool.Aligned(200 * block.BlockSize)
	for {
		select {
		case <-stop:
			return v.Close()
		default:
		}
		if err := v.ReadAt(buf, 0); err != nil {
			return err
		}
		for b := range 200 {
			if isZero(buf[b*block.BlockSize : (b+1)*block.BlockSize]) {
				return fmt.Errorf("block %d reads as zeros", b)
			}
		}
	}
}

// TestLinesAtRandom makes lines of history at random and audits the pool's
// counts at every step, also in the middle of jobs and after crashes.
func TestLinesAtRandom(t *testing.T) {
	seeds := 25
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { linesAtRandom(t, uint64(seed)) })
	}
}

func linesAtRandom(t *testing.T, seed uint64) {
	l := newLine(t, 12)
	l.r = rand.New(rand.NewPCG(seed, 7))
	for range 300 {
		must(t, l.anything())
		audit(t, l.p)
	}
	idle(t, l.p)
	audit(t, l.p)
	l.reopen(false)
	for len(l.p.Volumes()) > 0 {
		for _, v := range l.p.Volumes() {
			if err := l.p.DeleteVolume(v.Name, true); !fault.Is(err, fault.Busy) {
				must(t, err)
			}
		}
	}
	for l.piece() {
		audit(t, l.p)
	}
	l.holds(0, 0)
	must(t, l.p.Close())
	sound(t, l.d)
}

// anything does something to a volume, its snapshots or the pool.
func (l *line) anything() error {
	list := l.p.Volumes()
	vol := list[l.r.IntN(len(list))].Name
	snap := "none"
	if snaps, err := l.p.Snapshots(vol); err != nil {
		return err
	} else if len(snaps) > 0 {
		snap = snaps[l.r.IntN(len(snaps))].Name
	}
	b, to := l.r.Uint64N(l.blocks), int64(l.r.Uint64N(l.blocks))*block.BlockSize
	l.stamps++
	var err error
	switch n := l.r.IntN(100); {
	case n < 36:
		data := stamp(int(1+l.r.Uint64N(3))*block.BlockSize, l.stamps)
		err = l.change(vol, func(v *Volume) error { return v.WriteAt(data, int64(b)*block.BlockSize, 0) })
	case n < 44:
		err = l.change(vol, func(v *Volume) error { return v.Trim(int64(b)*block.BlockSize, 3*block.BlockSize) })
	case n < 48:
		err = l.change(vol, func(v *Volume) error {
			return v.CopyFrom(to, v, int64(b)*block.BlockSize, block.BlockSize, 0)
		})
	case n < 57:
		_, err = l.p.CreateSnapshot(vol, fmt.Sprint("s", l.stamps))
	case n < 67:
		err = l.p.DeleteSnapshot(vol, snap)
	case n < 75:
		err = l.p.Rollback(vol, snap)
	case n < 78 && len(list) < 4:
		_, err = l.p.Clone(vol, snap, fmt.Sprint("c", l.stamps))
	case n < 79 && len(list) > 1:
		err = l.p.DeleteVolume(vol, true)
	case n < 95:
		l.piece()
	case n < 97:
		err = l.checkpoint()
	case n < 99:
		l.reopen(l.r.IntN(2) == 0)
	default:
		idle(l, l.p)
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Busy) {
		return nil
	}
	return err
}

func (l *line) checkpoint() error {
	l.p.work.Lock()
	defer l.p.work.Unlock()
	return l.p.checkpoint()
}

// halfway deletes a snapshot, if it names one, and does a part of what that
// brings with it.
func (l *line) halfway(name string) {
	l.Helper()
	if name != "" {
		idle(l, l.p)
		l.remove(name)
	}
	for range rolledBlocks / 8 {
		l.piece()
		audit(l, l.p)
	}
}

// change does something to a volume.
func (l *line) change(name string, do func(v *Volume) error) error {
	v, err := l.p.OpenVolume(name)
	if err != nil {
		return err
	}
	if err := do(v); err != nil {
		return err
	}
	return v.Close()
}

// piece sweeps some of the blocks that a step of the first job would. It
// reports whether there is a job.
func (l *line) piece() bool {
	l.p.work.Lock()
	defer l.p.work.Unlock()
	w := l.p.firstJob()
	if w == nil {
		return false
	}
	lbas, next, done, err := l.p.affected(w)
	must(l, err)
	if n := 1 + l.r.IntN(4); n < len(lbas) {
		lbas, next, done = lbas[:n], lbas[n], false
	}
	must(l, l.p.sweepAll(w, lbas, next, done))
	return true
}

// audit counts anew, in the plainest way, who reads what: it reads each block
// as every head and snapshot would, those a job has not reached too. An entry
// that nobody comes by must not be there, nor a hole that hides nothing, and the
// counts must be what the readers that came by make them.
func audit(t testing.TB, p *Pool) {
	t.Helper()
	var all []maptree.Entry
	must(t, p.tree.Scan(maptree.Key{Branch: format.BranchShared + 1, Gen: format.GenMax}, maptree.Key{Branch: ^uint32(0)}, 0, func(e maptree.Entry) bool {
		all = append(all, e)
		return true
	}))
	by := p.readersOf(t, all)
	want := map[*int64]int64{}
	for i, e := range all {
		b := p.cat.branches[e.Branch]
		if len(by[e.Key]) == 0 && !b.goesWhole() {
			t.Fatalf("nobody reads the entry %+v of kind %d", e.Key, kindOf(e))
		}
		for c := range by[e.Key] {
			if kindOf(e) == format.KindData && len(by[e.Key]) == 1 {
				want[c]++
			}
		}
		last := i+1 == len(all) || all[i+1].Branch != e.Branch || all[i+1].LBA != e.LBA
		if last && kindOf(e) == format.KindHole {
			if _, at := p.find(t, b.parent, e.LBA, b.parentLSN); at == nil {
				t.Fatalf("the hole %+v hides nothing", e.Key)
			}
		}
	}
	for id, b := range p.cat.branches {
		if (b.head != nil || b.leaving) && !b.goesWhole() && b.exclusive != want[&b.exclusive] {
			t.Fatalf("branch %d: the head has %d blocks for itself, and says %d", id, want[&b.exclusive], b.exclusive)
		}
		for _, q := range b.pins {
			if q.exclusive != want[&q.exclusive] {
				t.Fatalf("branch %d: pin %d has %d blocks for itself, and says %d (%d children, dying %v)", id, q.lsn, want[&q.exclusive], q.exclusive, len(q.children), q.dying)
			}
		}
	}
}

// readersOf returns for each entry by which pins and heads of its branch
// readers come to it; each is named by its count.
func (p *Pool) readersOf(t testing.TB, all []maptree.Entry) map[maptree.Key]map[*int64]bool {
	out := map[maptree.Key]map[*int64]bool{}
	read := func(b *branch, lsn uint64, count *int64, lba uint64) {
		for b != nil {
			e, ok, err := p.tree.Lookup(b.id, lba, lsn)
			must(t, err)
			if ok {
				if out[e.Key] == nil {
					out[e.Key] = map[*int64]bool{}
				}
				out[e.Key][count] = true
				return
			}
			if b.fork != nil {
				count = &b.fork.exclusive
			}
			b, lsn = b.parent, b.parentLSN
		}
	}
	seen := map[uint64]bool{}
	for _, e := range all {
		if seen[e.LBA] {
			continue
		}
		seen[e.LBA] = true
		for _, b := range p.cat.branches {
			for _, q := range b.pins {
				if b.reads(q, e.LBA) {
					read(b, q.lsn, &q.exclusive, e.LBA)
				}
			}
			if b.headReads(e.LBA) {
				read(b, format.GenMax, &b.exclusive, e.LBA)
			}
		}
	}
	return out
}

// goesWhole tells whether one sweep is taking all that is in b; see dropDying.
func (b *branch) goesWhole() bool { return b.job != nil && b.job.Head && len(b.pins) == 0 }

// find is applier.find.
func (p *Pool) find(t testing.TB, b *branch, lba, lsn uint64) (e maptree.Entry, at *branch) {
	must(t, p.tree.Mutate(nil, func(tx *maptree.Tx) (err error) {
		e, at, err = (&applier{p: p, tx: tx}).find(b, lba, lsn)
		return err
	}))
	return e, at
}
