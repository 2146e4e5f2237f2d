package statevol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/lun"
)

var _ lun.StateKeeper = struct {
	lun.Volume
	*Unit
}{}

// A unit's state has room for what a logical unit says.
var _ [StateMax - lun.StateMax]struct{}

func open(t testing.TB, d block.Device) *State {
	t.Helper()
	s, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *State) must(t testing.TB, n uint32) *Unit {
	t.Helper()
	u, err := s.Unit(n)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// filled is a state that can be told from others: its number, over and over.
func filled(n, size int) []byte {
	b := make([]byte, max(size, 8))
	for i := range b {
		b[i] = byte(n>>(8*(i%4))) ^ byte(i>>10)
	}
	binary.LittleEndian.PutUint64(b, uint64(n))
	return b
}

// TestUnits: every unit has its own place, from nothing to the largest state,
// and the next who opens finds all of it.
func TestUnits(t *testing.T) {
	d := newDrive()
	s := open(t, d)
	for n := uint32(1); n <= Units; n++ {
		u := s.must(t, n)
		if got, err := u.LoadState(); got != nil || err != nil {
			t.Fatalf("unit %d of a fresh volume: %d bytes, %v", n, len(got), err)
		}
		for _, size := range []int{8, StateMax, 5000 + int(n)} {
			if err := u.SaveState(filled(int(n), size), n%2 == 0); err != nil {
				t.Fatal(err)
			}
			if got, err := u.LoadState(); err != nil || !bytes.Equal(got, filled(int(n), size)) {
				t.Fatalf("unit %d, %d bytes: %d bytes, %v", n, size, len(got), err)
			}
		}
	}
	s = open(t, d)
	for n := uint32(1); n <= Units; n++ {
		got, err := s.must(t, n).LoadState()
		peeked, perr := Peek(d, n)
		if err := errors.Join(err, perr); err != nil || !bytes.Equal(got, filled(int(n), 5000+int(n))) || !bytes.Equal(got, peeked) {
			t.Fatalf("unit %d: %d bytes, peeked %d, %v", n, len(got), len(peeked), err)
		}
	}
	u := s.must(t, 7)
	if err := u.SaveState(make([]byte, StateMax+1), false); !fault.Is(err, fault.Limit) {
		t.Errorf("a state too long: %v", err)
	}
	if err := u.Clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, d).must(t, 7).LoadState(); len(got) > 0 || err != nil {
		t.Errorf("a cleared place has %d bytes, %v", len(got), err)
	}
	for _, n := range []uint32{0, Units + 1} {
		_, err := s.Unit(n)
		_, perr := Peek(d, n)
		if !fault.Is(err, fault.Limit) || !fault.Is(perr, fault.Limit) {
			t.Errorf("unit %d: %v, %v", n, err, perr)
		}
	}
}

// TestWritesLittle: a save writes the blocks that the state needs, at once, and
// flushes only where a slot that may be the only stable one would go.
func TestWritesLittle(t *testing.T) {
	d := newDrive()
	u := open(t, d).must(t, 1)
	flushes := 0
	d.fail = func(op string) error {
		if op == "flush" {
			flushes++
		}
		return nil
	}
	for i, c := range []struct {
		size    int
		durable bool
		flushes int
	}{{100, true, 0}, {100, true, 0}, {9000, false, 0}, {100, false, 1}, {100, true, 2}, {100, true, 2}} {
		d.writes, d.blocks = 0, 0
		if err := u.SaveState(filled(i, c.size), c.durable); err != nil {
			t.Fatal(err)
		}
		if want := (slotHeader + c.size + block.BlockSize - 1) / block.BlockSize; d.writes != 1 || d.blocks != want {
			t.Errorf("save %d: %d blocks in %d writes, want %d in one", i, d.blocks, d.writes, want)
		}
		if flushes != c.flushes {
			t.Errorf("save %d: %d flushes so far, want %d", i, flushes, c.flushes)
		}
	}
}

// TestHeader: what Open refuses, and that it changes nothing then.
func TestHeader(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		kind   fault.Kind
	}{
		{"newer", func(b []byte) { b[8] = 2 }, fault.Invalid},
		{"magic", func(b []byte) { b[0] = 'x' }, fault.Corrupt},
		{"checksum", func(b []byte) { b[33]++ }, fault.Corrupt},
		{"places", func(b []byte) { b[16]++ }, fault.Corrupt},
	} {
		d := newDrive()
		open(t, d)
		c.damage(d.stable[0])
		d.writes = 0
		if _, err := Open(d); !fault.Is(err, c.kind) || d.writes > 0 {
			t.Errorf("%s: %v, %d writes", c.name, err, d.writes)
		}
	}
	if _, err := Open(short{newDrive()}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a volume too small: %v", err)
	}
}

type short struct{ *drive }

func (short) Size() int64 { return Size - block.BlockSize }

// TestDamage: one slot that is torn leaves the other, two are told.
func TestDamage(t *testing.T) {
	d := newDrive()
	u := open(t, d).must(t, 3)
	for i := range 2 {
		if err := u.SaveState(filled(i, 6000), true); err != nil {
			t.Fatal(err)
		}
	}
	d.stable[slotOffset(3, 1)/block.BlockSize+1][77]++
	if got, err := open(t, d).must(t, 3).LoadState(); err != nil || !bytes.Equal(got, filled(0, 6000)) {
		t.Errorf("with one slot torn: %d bytes, %v", len(got), err)
	}
	d.stable[slotOffset(3, 0)/block.BlockSize][70]++
	if _, err := open(t, d).must(t, 3).LoadState(); !fault.Is(err, fault.Corrupt) {
		t.Errorf("with both torn: %v", err)
	}
	if err := open(t, d).must(t, 3).SaveState(nil, true); !fault.Is(err, fault.Corrupt) {
		t.Errorf("saving over both torn: %v", err)
	}
}

// TestFailures: a save that fails leaves the former state in force, the next
// one works; after a failed flush none does.
func TestFailures(t *testing.T) {
	d := newDrive()
	u := open(t, d).must(t, 3)
	if err := u.SaveState(filled(1, 100), false); err != nil {
		t.Fatal(err)
	}
	gone := fault.New(fault.Fenced, "the epoch is over")
	failing := "write"
	d.fail = func(op string) error {
		if op == failing {
			return gone
		}
		return nil
	}
	if err := u.SaveState(filled(2, 100), false); !fault.Is(err, fault.Fenced) {
		t.Errorf("a write that fails: %v", err)
	}
	if got, err := u.LoadState(); err != nil || !bytes.Equal(got, filled(1, 100)) {
		t.Errorf("after it: %v, %v", got, err)
	}
	failing = ""
	if err := u.SaveState(filled(3, 100), false); err != nil {
		t.Fatal(err)
	}
	failing = "flush"
	if err := u.SaveState(filled(4, 100), false); !fault.Is(err, fault.Fenced) {
		t.Errorf("a flush that fails: %v", err)
	}
	failing = ""
	if err := u.SaveState(filled(5, 100), true); !fault.Is(err, fault.Fenced) {
		t.Errorf("a save after a failed flush: %v", err)
	}
	if got, err := u.LoadState(); err != nil || !bytes.Equal(got, filled(3, 100)) {
		t.Errorf("after it: %v, %v", got, err)
	}
}

// TestTornSaves saves and loses the power, or only the process, wherever it may
// happen. After a loss of power there is a state, no older than the last that
// was durable; after that of the process it is the last one, or the one that
// was on its way.
func TestTornSaves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDrive()
		s, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		coin := func() bool { return rapid.Bool().Draw(t, "lands") }
		oldest, last := 0, 0 // of the states that may be found
		sizes := []int{0}
		for range rapid.IntRange(1, 4).Draw(t, "lives") {
			u, _ := s.Unit(5)
			for range rapid.IntRange(0, 5).Draw(t, "saves") {
				last++
				durable := coin()
				sizes = append(sizes, rapid.SampledFrom([]int{8, 4000, 4100, 13000}).Draw(t, "size"))
				if err := u.SaveState(filled(last, sizes[last]), durable); err != nil {
					t.Fatal(err)
				}
				if durable {
					oldest = last
				}
			}
			attempted := last
			if coin() { // in the middle of one
				attempted++
				sizes = append(sizes, rapid.SampledFrom([]int{8, 4000, 4100, 13000}).Draw(t, "size"))
				d.tear = coin
				if err := u.SaveState(filled(attempted, sizes[attempted]), coin()); err == nil {
					t.Fatal("a torn write succeeded")
				}
			}
			d.tear = nil
			if power := coin(); power {
				d.crash(coin)
			} else {
				oldest = last
			}
			if s, err = Open(d); err != nil {
				t.Fatal(err)
			}
			u, _ = s.Unit(5)
			got, err := u.LoadState()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			if got != nil {
				n = int(binary.LittleEndian.Uint64(got))
			}
			if n < oldest || n > attempted || n > 0 && !bytes.Equal(got, filled(n, sizes[n])) {
				t.Fatalf("found state %d of %d bytes, want one of %d to %d", n, len(got), oldest, attempted)
			}
			// What was found is what counts from here on. It may be volatile.
			sizes = sizes[:attempted+1]
			last = attempted
			found := filled(n, sizes[n])
			last++
			sizes = append(sizes, sizes[n])
			copy(found, filled(last, 8)[:8])
			if err := u.SaveState(filled(last, sizes[last]), true); err != nil {
				t.Fatal(err)
			}
			oldest = last
		}
	})
}

func session(i int) Session {
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 3260)
	c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), uint16(1024+i))
	if i%3 == 0 {
		a = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 3260)
		c = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+2)), uint16(1024+i))
	}
	return Session{a, c}
}

func sorted(list []Session) []Session {
	slices.SortFunc(list, func(a, b Session) int { return a.Client.Compare(b.Client) })
	return list
}

// TestSessions: the next who opens the volume finds the connections of the one
// before, of both families, as many as there are places.
func TestSessions(t *testing.T) {
	d := newDrive()
	s := open(t, d)
	table := s.Sessions()
	var want []Session
	for i := range SessionsMax {
		if err := table.Add(session(i)); err != nil {
			t.Fatal(err)
		}
		if i%5 != 0 {
			want = append(want, session(i))
		}
	}
	if err := table.Add(session(SessionsMax)); !fault.Is(err, fault.Limit) {
		t.Errorf("one more than there are places: %v", err)
	}
	if err := table.Add(session(17)); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	for i := 0; i < SessionsMax; i += 5 {
		table.Remove(session(i))
		table.Remove(session(i))
	}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	next := open(t, d).Sessions()
	if got := sorted(next.List()); !slices.Equal(got, sorted(want)) {
		t.Fatalf("%d sessions came over, want %d", len(got), len(want))
	}
	mapped := Session{
		netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 3260),
		netip.AddrPortFrom(netip.MustParseAddr("::ffff:198.51.0.1"), 1025),
	}
	next.Remove(mapped) // the same as session 1
	if got := len(next.List()); got != len(want)-1 {
		t.Errorf("%d sessions, want %d: an IPv4 address has two forms", got, len(want)-1)
	}
	next.Clear()
	if err := next.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, d).Sessions().List(); len(got) > 0 {
		t.Errorf("%d sessions after Clear", len(got))
	}
	for _, bad := range []Session{{}, {Alias: session(0).Alias, Client: session(1).Client}} {
		if err := next.Add(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestSessionsDoNotWait: logins go on while the device takes nothing, and cost
// it one write for each block then.
func TestSessionsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDrive()
		s, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		blocked := make(chan struct{})
		d.gate = func() { <-blocked }
		d.writes = 0
		for i := range 1000 {
			if err := s.Sessions().Add(session(i)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if d.writes != 0 {
			t.Error("the device is not blocked")
		}
		close(blocked)
		if err := s.Sessions().Sync(); err != nil {
			t.Fatal(err)
		}
		if most := 1000/sessionsPer + 2; d.writes > most {
			t.Errorf("%d writes for 1000 sessions, want at most %d", d.writes, most)
		}
		s.Close()
		s.Sessions().Remove(session(1))
		if err := s.Sessions().Sync(); !fault.Is(err, fault.Canceled) {
			t.Errorf("Sync after Close: %v", err)
		}
	})
}

// TestSessionsFail: a write that fails is told by Sync, and made up for by the
// next one.
func TestSessionsFail(t *testing.T) {
	d := newDrive()
	s := open(t, d)
	fails := fault.New(fault.Fenced, "the epoch is over")
	d.fail = func(string) error { return fails }
	if err := s.Sessions().Add(session(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Sessions().Sync(); !fault.Is(err, fault.Fenced) {
		t.Errorf("Sync: %v", err)
	}
	fails = nil
	if err := s.Sessions().Sync(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, d).Sessions().List(); len(got) != 1 {
		t.Errorf("%d sessions", len(got))
	}
}

// FuzzOpen opens whatever stands in the header, in the table and in a unit's
// slots. Nothing panics, and what is accepted can be saved over.
func FuzzOpen(f *testing.F) {
	d := newDrive()
	s := open(f, d)
	u := s.must(f, 1)
	for i := range 2 {
		if err := u.SaveState(filled(i, 5000), true); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Sessions().Add(session(1)); err != nil {
		f.Fatal(err)
	}
	if err := s.Sessions().Sync(); err != nil {
		f.Fatal(err)
	}
	read := func(at int64, n int) []byte {
		b := make([]byte, n)
		if err := d.ReadAt(b, at); err != nil {
			f.Fatal(err)
		}
		return b
	}
	header, table := read(0, block.BlockSize), read(sessionFirst*block.BlockSize, block.BlockSize)
	f.Add(header, table, read(slotOffset(1, 0), 2*block.BlockSize), read(slotOffset(1, 1), 2*block.BlockSize))
	f.Add([]byte{}, []byte{4}, []byte("SFunit"), []byte{})
	f.Fuzz(func(t *testing.T, header, table, first, second []byte) {
		d := newDrive()
		put := func(at int64, b []byte) {
			b = b[:min(len(b), 3*block.BlockSize)]
			p := make([]byte, (len(b)+block.BlockSize-1)/block.BlockSize*block.BlockSize)
			copy(p, b)
			if err := d.WriteAt(p, at, block.FUA); err != nil {
				t.Fatal(err)
			}
		}
		put(0, header)
		put(sessionFirst*block.BlockSize, table)
		put(slotOffset(1, 0), first)
		put(slotOffset(1, 1), second)
		s, err := Open(d)
		if err != nil {
			return
		}
		defer s.Close()
		for _, x := range s.Sessions().List() {
			if again, ok := plain(x); !ok || again != x {
				t.Fatalf("session %v is not in its plain form", x)
			}
		}
		u, _ := s.Unit(1)
		if _, err := u.LoadState(); err != nil {
			return
		}
		if err := u.SaveState([]byte("after"), true); err != nil {
			t.Fatal(err)
		}
		if got, err := u.LoadState(); err != nil || string(got) != "after" {
			t.Fatalf("after a save: %q, %v", got, err)
		}
	})
}
