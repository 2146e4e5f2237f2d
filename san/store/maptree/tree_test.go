package maptree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"steadfast/fault"
)

// memory is a pager in memory that counts what is in use.
type memory struct {
	mu    sync.Mutex
	next  Addr
	nodes map[Addr][]byte
	freed map[Addr]bool
	fail  bool
}

func newMemory() *memory { return &memory{nodes: map[Addr][]byte{}, freed: map[Addr]bool{}} }

func (m *memory) ReadNode(a Addr, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.nodes[a]
	if !ok {
		return fault.New(fault.Corrupt, "no node at %d", a)
	}
	copy(p, n)
	return nil
}

func (m *memory) WriteNodes(nodes [][]byte) ([]Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail {
		return nil, fault.New(fault.Failed, "the drive failed")
	}
	var out []Addr
	for _, n := range nodes {
		m.next++
		m.nodes[m.next] = slices.Clone(n)
		out = append(out, m.next)
	}
	return out, nil
}

func (m *memory) FreeNode(a Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.freed[a] {
		panic(fmt.Sprintf("node %d freed twice", a))
	}
	m.freed[a] = true
}

// sweep forgets freed nodes, as after a checkpoint, and returns what is left.
func (m *memory) sweep() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a := range m.freed {
		delete(m.nodes, a)
	}
	clear(m.freed)
	return len(m.nodes)
}

func checkpoint(t interface{ Fatal(...any) }, tree *Tree) Root {
	f, err := tree.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	root, err := f.Write()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func order(a, b Entry) int {
	if pack(a.Key).less(pack(b.Key)) {
		return -1
	}
	return 1
}

// TestModel holds the tree against a map through random changes, checkpoints
// beside changes, failed checkpoints, and reopening from the drive.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := newMemory()
		tree := New(mem, Options{})
		model := map[Key]Entry{}
		blocks := rapid.Uint64Range(10, 3000).Draw(t, "blocks")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		gen := uint64(0)
		change := func(n int) {
			err := tree.Mutate(nil, func(tx *Tx) error {
				first := r.Uint64N(blocks)
				for i := range n {
					k := Key{Branch: r.Uint32N(3), LBA: r.Uint64N(blocks)}
					if i%2 == 0 {
						k = Key{Branch: 1, LBA: first + uint64(i)/2}
					}
					e, ok, err := tx.Lookup(k.Branch, k.LBA, genMask)
					if err != nil {
						return err
					}
					if ok && r.IntN(4) > 0 {
						if done, err := tx.Delete(e.Key); err != nil || !done {
							return fmt.Errorf("delete %v: %v: %w", e.Key, done, err)
						}
						delete(model, e.Key)
					}
					if r.IntN(3) > 0 {
						gen++
						k.Gen = gen
						e := Entry{Key: k, Ref: r.Uint64(), Sum: r.Uint64()}
						if err := tx.Put(e); err != nil {
							return err
						}
						model[k] = e
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			change(r.IntN(400))
			switch r.IntN(5) {
			case 0: // a checkpoint with changes in the middle of it
				f, err := tree.Freeze()
				if err != nil {
					t.Fatal(err)
				}
				frozen := slices.Collect(values(model))
				change(r.IntN(300))
				mem.fail = r.IntN(3) == 0
				root, err := f.Write()
				if mem.fail != (err != nil) && root.Addr&tempBit == 0 && root.Nodes > 0 && err == nil && len(f.placed) > 0 {
					t.Fatalf("write: %v with a pager that fails: %v", err, mem.fail)
				}
				mem.fail = false
				if err == nil {
					compare(t, Open(mem, root, Options{}), frozen, r, blocks, gen)
				}
			case 1: // close and open
				tree = Open(mem, checkpoint(t, tree), Options{})
				if left := mem.sweep(); left != int(tree.Nodes()) {
					t.Fatalf("%d nodes on the drive, the tree has %d", left, tree.Nodes())
				}
			}
			compare(t, tree, slices.Collect(values(model)), r, blocks, gen)
		}
	})
}

func values(m map[Key]Entry) func(func(Entry) bool) {
	return func(yield func(Entry) bool) {
		for _, e := range m {
			if !yield(e) {
				return
			}
		}
	}
}

// compare reads all of tree in every way there is.
func compare(t *rapid.T, tree *Tree, want []Entry, r *rand.Rand, blocks, gen uint64) {
	slices.SortFunc(want, order)
	since := r.Uint64N(gen + 1)
	var got, all, recent []Entry
	for _, e := range want {
		if e.Gen > since {
			recent = append(recent, e)
		}
	}
	end := Key{Branch: 9}
	if err := tree.Scan(Key{Gen: genMask}, end, 0, func(e Entry) bool { all = append(all, e); return true }); err != nil {
		t.Fatal(err)
	}
	if err := tree.Scan(Key{Gen: genMask}, end, since, func(e Entry) bool { got = append(got, e); return true }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(all, want) || tree.Len() != uint64(len(want)) {
		t.Fatalf("scan: %d entries, want %d (%v)", len(all), len(want), tree)
	}
	if !slices.Equal(got, recent) {
		t.Fatalf("scan since %d: %d entries, want %d", since, len(got), len(recent))
	}
	lba, n, at := r.Uint64N(blocks), 1+r.IntN(300), r.Uint64N(gen+2)
	out, found := make([]Entry, n), make([]bool, n)
	if err := tree.LookupRange(1, lba, n, at, out, found); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		k := Key{1, lba + uint64(i), at}
		j, _ := slices.BinarySearchFunc(want, Entry{Key: k}, func(a, b Entry) int {
			if a.Key == b.Key {
				return 0
			}
			return order(a, b)
		})
		ok := j < len(want) && want[j].Branch == 1 && want[j].LBA == k.LBA
		if ok != found[i] || ok && out[i] != want[j] {
			t.Fatalf("lookup %v: %v %v, want %v", k, found[i], out[i], ok)
		}
		if e, ok2, err := tree.Lookup(1, k.LBA, at); err != nil || ok2 != ok || ok && e != want[j] {
			t.Fatalf("single lookup %v: %v %v %v", k, e, ok2, err)
		}
	}
}

// TestConcurrent lets readers, a mutator and checkpoints meet in a cache that
// is too small; the race detector judges.
func TestConcurrent(t *testing.T) {
	mem := newMemory()
	tree := New(mem, Options{})
	tree.limit = 64
	const blocks = 50000
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			out, found := make([]Entry, 40), make([]bool, 40)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := tree.LookupRange(1, r.Uint64N(blocks), 40, genMask, out, found); err != nil {
					t.Error(err)
					return
				}
				for i, e := range out {
					if found[i] && e.Ref != e.LBA*7 {
						t.Errorf("wrong entry %v", e)
						return
					}
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(5, 5))
	for gen := uint64(1); gen < 200; gen++ {
		err := tree.Mutate(nil, func(tx *Tx) error {
			for range 200 {
				k := Key{1, r.Uint64N(blocks), gen}
				if e, ok, err := tx.Lookup(1, k.LBA, genMask); err != nil {
					return err
				} else if ok {
					if _, err := tx.Delete(e.Key); err != nil {
						return err
					}
				}
				if err := tx.Put(Entry{Key: k, Ref: k.LBA * 7}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if gen%5 == 0 {
			wg.Go(func() {
				if f, err := tree.Freeze(); err == nil {
					if _, err := f.Write(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	close(stop)
	wg.Wait()
	checkpoint(t, tree)
	if left := mem.sweep(); left != int(tree.Nodes()) {
		t.Fatalf("%d nodes on the drive, the tree has %d", left, tree.Nodes())
	}
}

// TestDescending fills the tree from the back, which splits the leftmost nodes
// again and again, while what was there first goes.
func TestDescending(t *testing.T) {
	tree := New(newMemory(), Options{})
	const n = 40000
	err := tree.Mutate(nil, func(tx *Tx) error {
		for i := uint64(n); i > 0; i-- {
			if err := tx.Put(Entry{Key: Key{1, i, 1}, Ref: i}); err != nil {
				return err
			}
			if err := tx.Swap(Key{1, i, 1}, Entry{Key: Key{1, i, 2}, Ref: i}); err != nil {
				return err
			}
			if i%3 != 0 {
				if _, err := tx.Delete(Key{1, i + n/100, 2}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= n; i++ {
		_, ok, err := tree.Lookup(1, i, genMask)
		if want := i <= n/100 || (i-n/100)%3 == 0; err != nil || ok != want {
			t.Fatalf("block %d: %v %v, want %v", i, ok, err, want)
		}
	}
}

func FuzzParseNode(f *testing.F) {
	f.Add(make([]byte, NodeSize))
	n := make(node, NodeSize)
	format(n, 0)
	n.insert(0, pack(Key{1, 2, 3}))
	f.Add([]byte(n))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, _, count, ok := ParseNode(p); ok && (count < 1 || count > leafMax) {
			t.Fatal(count)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	tree := New(newMemory(), Options{CacheBytes: 1 << 30})
	_ = tree.Mutate(nil, func(tx *Tx) error {
		for i := range uint64(1e6) {
			_ = tx.Put(Entry{Key: Key{1, i, i + 1}})
		}
		return nil
	})
	r := rand.New(rand.NewPCG(1, 1))
	b.ResetTimer()
	for b.Loop() {
		_, _, _ = tree.Lookup(1, r.Uint64N(1e6), genMask)
	}
}

func BenchmarkPut(b *testing.B) {
	tree := New(newMemory(), Options{CacheBytes: 1 << 30})
	r := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		_ = tree.Mutate(nil, func(tx *Tx) error {
			for range 32 {
				_ = tx.Put(Entry{Key: Key{1, r.Uint64N(1e6), 1}})
			}
			return nil
		})
	}
}

// TestScanWhileReplaced gives blocks newer entries while a scan is between two
// leaves: each block must be seen, as it was or as it is.
func TestScanWhileReplaced(t *testing.T) {
	tree := New(newMemory(), Options{})
	const blocks = 1000
	gen := uint64(1)
	put := func(old, lba uint64) {
		err := tree.Mutate(nil, func(tx *Tx) error {
			if old == 0 {
				return tx.Put(Entry{Key: Key{1, lba, gen}})
			}
			return tx.Swap(Key{1, lba, old}, Entry{Key: Key{1, lba, gen}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for lba := range uint64(blocks) {
		put(0, lba)
	}
	newest := make([]uint64, blocks)
	for i := range newest {
		newest[i] = gen
	}
	seen := make([]int, blocks)
	err := tree.Scan(Key{1, 0, genMask}, Key{1, blocks, genMask}, 0, func(e Entry) bool {
		seen[e.LBA]++
		// All that follows gets newer entries, in this leaf and in the next.
		gen++
		for lba := e.LBA + 1; lba < min(e.LBA+200, blocks); lba++ {
			put(newest[lba], lba)
			newest[lba] = gen
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	for lba, n := range seen {
		if n != 1 {
			t.Fatalf("block %d was seen %d times", lba, n)
		}
	}
}
