package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"steadfast/block"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store"
)

// request is what one operation asks of one block: to put stamps from sector
// on, if old (unless nil) is there; or to read the block when put is nil.
type request struct {
	block  int64
	sector int
	old    []Stamp
	put    []Stamp
}

// answer is the block as it was read, or whether a comparison matched.
type answer struct {
	read    Block
	matched bool
}

// blockModel says that a block is a register of eight sectors.
func blockModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
			byBlock := map[int64][]porcupine.Operation{}
			for _, op := range history {
				b := op.Input.(request).block
				byBlock[b] = append(byBlock[b], op)
			}
			for _, ops := range byBlock {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return Block{} },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(Block), input.(request), output.(answer)
			if in.put == nil {
				return s == out.read, s
			}
			if in.old != nil {
				same := slices.Equal(s[in.sector:in.sector+len(in.old)], in.old)
				if same != out.matched {
					return false, s
				}
				if !same {
					return true, s
				}
			}
			copy(s[in.sector:], in.put)
			return true, s
		},
		Equal: func(a, b any) bool { return a.(Block) == b.(Block) },
	}
}

// TestModelCanFail shows the checker a read that skips a write.
func TestModelCanFail(t *testing.T) {
	whole := func(s Stamp) []Stamp { return slices.Repeat([]Stamp{s}, SectorsPerBlock) }
	history := []porcupine.Operation{
		{Input: request{put: whole(1)}, Output: answer{}, Call: 1, Return: 2},
		{Input: request{put: whole(2)}, Output: answer{}, Call: 3, Return: 4},
		{Input: request{}, Output: answer{read: Block(whole(2))}, Call: 5, Return: 6},
	}
	if !porcupine.CheckOperations(blockModel(), history) {
		t.Error("a right history was refused")
	}
	history[2].Output = answer{read: Block(whole(1))}
	if porcupine.CheckOperations(blockModel(), history) {
		t.Error("a stale read was taken")
	}
}

// stress is several clients of one volume at once.
type stress struct {
	t       *testing.T
	dev     *store.Volume
	blocks  int64
	stamp   atomic.Uint64
	clock   atomic.Int64
	mu      sync.Mutex
	history []porcupine.Operation
}

// TestLinear has clients read, write and compare-and-write overlapping blocks
// and parts of blocks of one volume while the pool is maintained, scrubbed and
// snapshotted, and holds each block's history to some one order.
func TestLinear(t *testing.T) {
	operations := 400
	if testing.Short() {
		operations = 120
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runStress(t, seed, operations) })
	}
}

func runStress(t *testing.T, seed uint64, operations int) {
	world := drivetest.NewWorld()
	disk := world.NewDisk("d", 64<<20, rand.New(rand.NewPCG(seed, 1)))
	var ids, now atomic.Uint64
	pool, err := store.Create("pool", store.Options{
		CacheBytes: 16 << 20,
		Now:        func() store.Instant { return store.Instant(now.Add(1e6)) },
		NewID:      func() store.ID { return store.ID{0: byte(ids.Add(1)), 1: 0xa5} },
	}, []store.NamedDrive{{Name: "d", Drive: disk.Open()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.CreateVolume(store.VolumeSpec{Name: "v", Size: store.VolumeSizeMin, WriteCache: seed%2 == 0}); err != nil {
		t.Fatal(err)
	}
	dev, err := pool.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	s := &stress{t: t, dev: dev, blocks: 6}
	stop := make(chan struct{})
	var background, clients sync.WaitGroup
	background.Go(func() { maintain(t, pool, stop) })
	for g := range uint64(6) {
		clients.Go(func() { s.client(int(g), rand.New(rand.NewPCG(seed, g)), operations) })
	}
	clients.Wait()
	close(stop)
	background.Wait()
	result, _ := porcupine.CheckOperationsVerbose(blockModel(), s.history, time.Minute)
	if result != porcupine.Ok {
		t.Errorf("the history of %d operations is %s", len(s.history), result)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
}

// maintain keeps the pool busy with itself until stop.
func maintain(t *testing.T, pool *store.Pool, stop chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		if _, err := pool.Maintain(); err != nil {
			t.Errorf("maintain: %v", err)
			return
		}
		if i%10 != 0 {
			continue
		}
		name := fmt.Sprintf("s%d", i)
		if _, err := pool.CreateSnapshot("v", name); err != nil {
			t.Errorf("snapshot: %v", err)
			return
		}
		if err := pool.DeleteSnapshot("v", name); err != nil {
			t.Errorf("delete snapshot: %v", err)
			return
		}
	}
}

// client does n operations and records each, by block.
func (s *stress) client(id int, r *rand.Rand, n int) {
	for range n {
		var err error
		switch r.IntN(8) {
		case 0, 1, 2:
			err = s.read(id, r)
		case 3, 4:
			err = s.compareAndWrite(id, r)
		default:
			err = s.write(id, r)
		}
		if err != nil {
			s.t.Error(err)
			return
		}
	}
}

func (s *stress) read(id int, r *rand.Rand) error {
	first := r.Int64N(s.blocks)
	n := 1 + r.Int64N(min(3, s.blocks-first))
	p := bufpool.Aligned(int(n) * block.BlockSize)
	call := s.clock.Add(1)
	if err := s.dev.ReadAt(p, first*block.BlockSize); err != nil {
		return err
	}
	end := s.clock.Add(1)
	stamps, err := Decode(p)
	if err != nil {
		return err
	}
	for i := range n {
		b := Block(stamps[i*SectorsPerBlock : (i+1)*SectorsPerBlock])
		s.record(id, call, end, request{block: first + i}, answer{read: b})
	}
	return nil
}

// write stores sectors anywhere, so that ends of it are parts of blocks; some
// are zeros, by a write or a trim.
func (s *stress) write(id int, r *rand.Rand) error {
	first := r.IntN(int(s.blocks) * SectorsPerBlock)
	n := 1 + r.IntN(min(20, int(s.blocks)*SectorsPerBlock-first))
	stamps := s.stamps(n)
	zero := r.IntN(6) == 0
	if zero {
		clear(stamps)
	}
	off := int64(first) * block.SectorSize
	call := s.clock.Add(1)
	var err error
	if zero && r.IntN(2) == 0 {
		err = s.dev.Zero(off, int64(n)*block.SectorSize, 0)
	} else {
		err = s.dev.WriteAt(Bytes(stamps), off, block.Flags(r.IntN(2)))
	}
	end := s.clock.Add(1)
	for len(stamps) > 0 {
		sector := first % SectorsPerBlock
		k := min(len(stamps), SectorsPerBlock-sector)
		s.record(id, call, end, request{block: int64(first / SectorsPerBlock), sector: sector, put: stamps[:k]}, answer{})
		first, stamps = first+k, stamps[k:]
	}
	return err
}

// compareAndWrite compares a part of one block with what it just read there.
func (s *stress) compareAndWrite(id int, r *rand.Rand) error {
	b := r.Int64N(s.blocks)
	sector := r.IntN(SectorsPerBlock)
	n := 1 + r.IntN(SectorsPerBlock-sector)
	off := b*block.BlockSize + int64(sector)*block.SectorSize
	old := make([]byte, n*block.SectorSize)
	if err := s.dev.ReadAt(old, off); err != nil {
		return err
	}
	is, err := Decode(old)
	if err != nil {
		return err
	}
	stamps := s.stamps(n)
	call := s.clock.Add(1)
	at, err := s.dev.CompareAndWrite(off, old, Bytes(stamps), 0)
	end := s.clock.Add(1)
	s.record(id, call, end, request{block: b, sector: sector, old: is, put: stamps}, answer{matched: at < 0})
	return err
}

func (s *stress) stamps(n int) []Stamp {
	out := make([]Stamp, n)
	for i := range out {
		out[i] = Stamp(s.stamp.Add(1))
	}
	return out
}

func (s *stress) record(id int, call, end int64, in request, out answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = append(s.history, porcupine.Operation{ClientId: id, Input: in, Call: call, Output: out, Return: end})
}
