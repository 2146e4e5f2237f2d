package vmlock

import (
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"steadfast/cluster/inventory"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBounds holds the bounds of keys to those of the numbers that the cluster
// gives.
func TestBounds(t *testing.T) {
	if inventory.BootMax > BootMax || inventory.GenerationMax > GenerationMax || inventory.EditorNumber > 1<<16-1 || inventory.EditorBoot > BootMax {
		t.Error("the inventory gives numbers that no key can have")
	}
}

// TestKeys: a key says whose it is, so that no two attempts share one.
func TestKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Owner{rapid.Uint16Min(1).Draw(t, "host"), rapid.Uint32Range(1, BootMax).Draw(t, "boot")}
		g, a := rapid.Uint64Range(1, GenerationMax).Draw(t, "generation"), rapid.Uint8Min(1).Draw(t, "attempt")
		key, err := Key(o, g, a)
		if err != nil {
			t.Fatal(err)
		}
		if o2, g2, a2 := KeyOf(key); o2 != o || g2 != g || a2 != a {
			t.Fatalf("%x is of %v %d %d, and was made of %v %d %d", key, o2, g2, a2, o, g, a)
		}
	})
	for _, bad := range []struct {
		o    Owner
		g    uint64
		a    uint8
		want fault.Kind
	}{
		{Owner{0, 1}, 1, 1, fault.Invalid},
		{Owner{1, 0}, 1, 1, fault.Invalid},
		{Owner{1, 1}, 0, 1, fault.Invalid},
		{Owner{1, 1}, 1, 0, fault.Invalid},
		{Owner{1, BootMax + 1}, 1, 1, fault.Limit},
		{Owner{1, 1}, GenerationMax + 1, 1, fault.Limit},
	} {
		if key, err := Key(bad.o, bad.g, bad.a); !fault.Is(err, bad.want) {
			t.Errorf("%+v: %x, %v", bad, key, err)
		}
		if _, err := NewLock(Config{Me: bad.o, Generation: bad.g, Attempt: bad.a, Nexuses: []int{1}}); !fault.Is(err, bad.want) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, n := range [][]int{nil, {0}, {1, 0}} {
		if _, err := NewLock(Config{Me: Owner{1, 1}, Generation: 1, Attempt: 1, Nexuses: n}); !fault.Is(err, fault.Invalid) {
			t.Errorf("volumes %v: %v", n, err)
		}
	}
}

// example is a block with something in each field.
func example() Block {
	return Block{VM: ID{1, 2, 3, 15: 16}, Generation: 77, Owner: Owner{513, 66_000}, Attempt: 9, Nonce: [16]byte{4, 5, 15: 6}, Held: true}
}

// TestBlock: each bit of a block counts.
func TestBlock(t *testing.T) {
	b := example()
	p := b.Encode()
	if got, err := Decode(p); err != nil || got != b {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range p {
		for bit := range 8 {
			q := p
			q[i] ^= 1 << bit
			if got, err := Decode(q); !fault.Is(err, fault.Corrupt) {
				t.Fatalf("byte %d bit %d flipped: %+v, %v", i, bit, got, err)
			}
		}
	}
	if _, err := Decode([BlockSize]byte{}); !fault.Is(err, fault.Corrupt) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := Decode(sealed(p, 8, 3)); !fault.Is(err, fault.Stale) {
		t.Errorf("a later version: %v", err)
	}
	// A flag that nobody knows: with a right checksum it still is not ours.
	if _, err := Decode(sealed(p, 12, 5)); !fault.Is(err, fault.Corrupt) {
		t.Errorf("an unknown flag: %v", err)
	}
}

// sealed sets one byte, and makes the checksum right.
func sealed(p [BlockSize]byte, at int, to byte) [BlockSize]byte {
	p[at] = to
	sum := checksum(p[:508])
	p[508], p[509], p[510], p[511] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	return p
}

// FuzzDecode: what decodes encodes to the same bytes, and nothing panics.
func FuzzDecode(f *testing.F) {
	p := example().Encode()
	f.Add(p[:])
	f.Add([]byte{})
	q := sealed(p, 42, 0)
	f.Add(q[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var p [BlockSize]byte
		copy(p[:], in)
		for _, p := range [][BlockSize]byte{p, sealed(p, 8, 1), sealed(p, 8, 2)} {
			if b, err := Decode(p); err == nil && b.Encode() != p {
				t.Errorf("%+v", b)
			}
		}
	})
}

// lastDo returns the command among effects.
func lastDo(t *testing.T, effects []Effect) Do {
	t.Helper()
	for _, e := range effects {
		if d, ok := e.(Do); ok {
			return d
		}
	}
	t.Fatalf("no command among %v", effects)
	return Do{}
}

// attempt is a lock that has registered at home and asks for the block.
func attempt(t *testing.T, generation uint64, number uint8) (*Lock, Do) {
	t.Helper()
	l, err := NewLock(Config{VM: ID{1}, Me: Owner{1, 1}, Generation: generation, Attempt: number, Nonce: [16]byte{7}, Nexuses: []int{1}})
	if err != nil {
		t.Fatal(err)
	}
	d := lastDo(t, l.Step(Begin{}))
	if _, ok := d.Op.(ReadBlock); !ok || len(l.Step(Begin{})) > 0 {
		t.Fatalf("it begins with %T", d.Op)
	}
	d = lastDo(t, l.Step(Answer{Seq: d.Seq, Block: Block{VM: ID{1}}.Encode()}))
	if r, ok := d.Op.(Register); !ok || r.Volume != Home || r.Key != l.Key() {
		t.Fatalf("it goes on with %T", d.Op)
	}
	return l, lastDo(t, l.Step(Answer{Seq: d.Seq}))
}

// TestWhoIsNewer: what an attempt may follow, and what it must not.
func TestWhoIsNewer(t *testing.T) {
	other := ID{2}
	for _, c := range []struct {
		name  string
		block Block
		want  fault.Kind // Internal: it goes on
	}{
		{"new", Block{VM: ID{1}}, fault.Internal},
		{"given back", Block{VM: ID{1}, Generation: 4, Owner: Owner{2, 1}, Attempt: 1}, fault.Internal},
		{"an older one's", Block{VM: ID{1}, Generation: 4, Owner: Owner{2, 1}, Attempt: 1, Held: true}, fault.Internal},
		{"its own earlier attempt", Block{VM: ID{1}, Generation: 5, Owner: Owner{1, 1}, Attempt: 1, Held: true}, fault.Internal},
		{"its own later attempt", Block{VM: ID{1}, Generation: 5, Owner: Owner{1, 1}, Attempt: 3, Held: true}, fault.Stale},
		{"another's of this attempt's number", Block{VM: ID{1}, Generation: 5, Owner: Owner{1, 1}, Attempt: 2, Held: true}, fault.Stale},
		{"another host's of this generation", Block{VM: ID{1}, Generation: 5, Owner: Owner{2, 1}, Attempt: 1, Held: true}, fault.Stale},
		{"another life's of this generation", Block{VM: ID{1}, Generation: 5, Owner: Owner{1, 2}, Attempt: 1, Held: true}, fault.Stale},
		{"a newer one's, given back", Block{VM: ID{1}, Generation: 6, Owner: Owner{2, 1}, Attempt: 1}, fault.Stale},
		{"another machine's", Block{VM: other}, fault.Invalid},
	} {
		l, read := attempt(t, 5, 2)
		out := l.Step(Answer{Seq: read.Seq, Block: c.block.Encode()})
		done, over := out[0].(Done)
		switch {
		case c.want == fault.Internal && over, c.want != fault.Internal && (!over || !fault.Is(done.Err, c.want)):
			t.Errorf("%s: %v", c.name, out)
		case c.want == fault.Stale && done.Found != c.block.Generation:
			t.Errorf("%s: found %d", c.name, done.Found)
		case !over:
			if w, ok := lastDo(t, out).Op.(CompareAndWrite); !ok || w.Old != c.block.Encode() {
				t.Errorf("%s: %T", c.name, lastDo(t, out).Op)
			}
		}
	}
	// One that comes too late sees it before it has registered anywhere.
	late, err := NewLock(Config{VM: ID{1}, Me: Owner{1, 1}, Generation: 5, Attempt: 1, Nexuses: []int{1}})
	if err != nil {
		t.Fatal(err)
	}
	peek := lastDo(t, late.Step(Begin{}))
	out := late.Step(Answer{Seq: peek.Seq, Block: Block{VM: ID{1}, Generation: 6, Owner: Owner{2, 1}, Attempt: 1, Held: true}.Encode()})
	if d, ok := out[0].(Done); !ok || !fault.Is(d.Err, fault.Stale) || d.Found != 6 {
		t.Errorf("one that comes too late: %v", out)
	}
	l, read := attempt(t, 5, 2)
	if out := l.Step(Answer{Seq: read.Seq}); !fault.Is(out[0].(Done).Err, fault.Corrupt) {
		t.Errorf("a home of zeros: %v", out)
	}
}

// TestAnswersOfOthers: an answer that nobody waits for is none; one that is an
// error ends an attempt.
func TestAnswersOfOthers(t *testing.T) {
	l, read := attempt(t, 5, 1)
	for _, seq := range []uint64{read.Seq - 1, read.Seq + 1} {
		if out := l.Step(Answer{Seq: seq, Block: example().Encode()}); len(out) > 0 {
			t.Errorf("an answer to %d: %v", seq, out)
		}
	}
	for _, in := range []Input{Conflicted{}, Check{}, Join{0, 1}, Release{}} {
		if out := l.Step(in); len(out) > 0 {
			t.Errorf("%T while taking: %v", in, out)
		}
	}
	out := l.Step(Answer{Seq: read.Seq, Status: Failed, Err: fault.New(fault.Corrupt, "a medium error")})
	if d, ok := out[0].(Done); !ok || !fault.Is(d.Err, fault.Corrupt) || l.State() != Over {
		t.Errorf("an error: %v", out)
	}
	l, _ = attempt(t, 5, 1)
	if out := l.Step(Abandon{}); !fault.Is(out[0].(Done).Err, fault.Canceled) {
		t.Errorf("abandoned: %v", out)
	}
}

// TestGivesUp: an attempt that gets no answers at all ends.
func TestGivesUp(t *testing.T) {
	l, d := attempt(t, 5, 1)
	for range 1000 {
		out := l.Step(Answer{Seq: d.Seq, Status: Unknown})
		if done, ok := out[0].(Done); ok {
			if !fault.Is(done.Err, fault.Busy) {
				t.Fatal(done.Err)
			}
			return
		}
		d = lastDo(t, out)
	}
	t.Error("it goes on for ever")
}

// TestHolder: what a holder does with checks, joins, errors and conflicts.
func TestHolder(t *testing.T) {
	hold := func() (*world, *process) {
		w, _ := frozenHolder(t)
		p := w.start(Owner{2, 1}, 2, 1)
		w.drive(p, 1000)
		return w, p
	}
	w, p := hold()
	// Two things at once: one after the other.
	first := p.lock.Step(Check{})
	if out := p.lock.Step(Join{1, 1}); len(out) > 0 {
		t.Fatalf("a join beside a check: %v", out)
	}
	if out := p.lock.Step(Join{1, 1}); len(out) != 1 || !fault.Is(out[0].(Refused).Err, fault.Invalid) {
		t.Errorf("a join that waits, again: %v", out)
	}
	join := lastDo(t, p.lock.Step(Answer{Seq: lastDo(t, first).Seq, Block: w.block}))
	if _, ok := join.Op.(Register); !ok {
		t.Fatalf("a join: %T", join.Op)
	}
	join = lastDo(t, p.lock.Step(Answer{Seq: join.Seq, Status: Unknown})) // asked again
	look := lastDo(t, p.lock.Step(Answer{Seq: join.Seq}))
	if _, ok := look.Op.(ReadBlock); !ok {
		t.Fatalf("a nexus was opened after %T", look.Op)
	}
	if out := p.lock.Step(Answer{Seq: look.Seq, Block: w.block}); len(out) != 1 || out[0] != (Open{1, 1}) {
		t.Errorf("a join ended with %v", out)
	}
	// A nexus that is open is never registered again.
	for _, j := range []Join{{1, 1}, {1, 0}, {7, 0}, {-1, 3}} {
		if out := p.lock.Step(j); len(out) != 1 || !fault.Is(out[0].(Refused).Err, fault.Invalid) {
			t.Errorf("%v: %v", j, out)
		}
	}
	// A check that fails says nothing about who has the lock.
	check := lastDo(t, p.lock.Step(Check{}))
	if out := p.lock.Step(Answer{Seq: check.Seq, Status: Failed}); len(out) != 1 || out[0].(Refused).Err == nil || p.lock.State() != Holding {
		t.Errorf("a check that failed: %v", out)
	}
	check = lastDo(t, p.lock.Step(Check{}))
	taken := Block{VM: ID{1}, Generation: 3, Owner: Owner{3, 1}, Attempt: 1, Held: true}
	if out := p.lock.Step(Answer{Seq: check.Seq, Block: taken.Encode()}); len(out) != 1 || !fault.Is(out[0].(Stop).Err, fault.Fenced) || p.lock.State() != Over {
		t.Errorf("the block is another's: %v", out)
	}
	// Over is over: nothing is written, not even to tidy up.
	for _, in := range []Input{Release{}, Check{}, Conflicted{}, Abandon{}, Begin{}, Answer{Seq: check.Seq}} {
		if out := p.lock.Step(in); len(out) > 0 {
			t.Errorf("%T after the end: %v", in, out)
		}
	}

	_, p = hold()
	if out := p.lock.Step(Conflicted{}); len(out) != 1 || !fault.Is(out[0].(Stop).Err, fault.Fenced) {
		t.Errorf("a conflict: %v", out)
	}

	_, p = hold()
	check = lastDo(t, p.lock.Step(Check{}))
	if out := p.lock.Step(Answer{Seq: check.Seq, Status: Conflict}); len(out) != 1 || p.lock.State() != Over {
		t.Errorf("a check that met a conflict: %v", out)
	}

	// A release whose answer is lost is read, and done again if it did not land.
	for _, landed := range []bool{false, true} {
		w, p = hold()
		w.step(p, Release{})
		l := lostCommand
		if landed {
			l = lostAnswer
		}
		w.deliver(len(w.wire)-1, l)
		w.answer(len(w.answers) - 1)
		w.drive(p, 1000)
		if b, err := Decode(w.block); err != nil || b.Held || p.ended != nil || !p.over {
			t.Errorf("a release that was not answered (landed: %t): %+v %v %v", landed, b, err, p.ended)
		}
	}
	w, p = hold()
	w.step(p, Release{})
	w.block = taken.Encode()
	w.drive(p, 1000)
	if b, _ := Decode(w.block); b != taken || !fault.Is(p.ended, fault.Fenced) {
		t.Errorf("a release after a takeover: %+v, %v", b, p.ended)
	}
}
