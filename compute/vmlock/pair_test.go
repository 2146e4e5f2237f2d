package vmlock

import (
	"testing"

	"steadfast/fault"
)

var (
	one = Owner{1, 1}
	two = Owner{2, 3}
)

// holding is a lock that holds an empty world's machine.
func holding(t *testing.T) (*world, *process) {
	t.Helper()
	w, _ := frozenHolder(t)
	p := w.start(one, 5, 2)
	w.drive(p, 1000)
	if !p.held {
		t.Fatal(p.ended)
	}
	return w, p
}

// change has a holder pair, or be alone, and returns the command.
func change(t *testing.T, p *process, partner Owner, nonce byte) Do {
	t.Helper()
	d := lastDo(t, p.lock.Step(Change{partner, [16]byte{nonce}}))
	if _, ok := d.Op.(CompareAndWrite); !ok {
		t.Fatalf("a change begins with %T", d.Op)
	}
	return d
}

// answer gives a lock the store's answer to a command, or what is said instead.
func (w *world) reply(p *process, d Do, instead *Answer) []Effect {
	a := Answer{}
	if instead == nil {
		a = w.execute(&command{from: p, op: d.Op})
	} else {
		a = *instead
	}
	a.Seq = d.Seq
	return p.lock.Step(a)
}

// TestPairBlock: a block that was never of a pair is of version 1, to the byte; one of a pair is
// of version 2, and each bit of it counts.
func TestPairBlock(t *testing.T) {
	b := example()
	p := b.Encode()
	if p[8] != 1 || p[64] != 0 {
		t.Error("a block of one host is of another version")
	}
	b.Turn, b.Partner = 1<<32-1, two
	p = b.Encode()
	if got, err := Decode(p); err != nil || got != b || p[8] != 2 || !got.Paired() {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range p {
		q := p
		q[i] ^= 1
		if got, err := Decode(q); !fault.Is(err, fault.Corrupt) {
			t.Fatalf("byte %d flipped: %+v, %v", i, got, err)
		}
	}
	b.Partner = Owner{}
	if got, err := Decode(b.Encode()); err != nil || got != b || got.Paired() {
		t.Errorf("%+v, %v", got, err)
	}
	// Version 2 for what version 1 says, and a flag without a partner.
	for _, q := range [][BlockSize]byte{sealed(example().Encode(), 8, 2), sealed(b.Encode(), 12, 3), sealed(b.Encode(), 8, 1)} {
		if got, err := Decode(q); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// TestChange: a change raises the turn; one whose answer tells nothing is read, and what is there
// decides.
func TestChange(t *testing.T) {
	w, p := holding(t)
	first := p.lock.now
	want := first
	want.Turn, want.Partner, want.Nonce = 1, two, [16]byte{1}
	out := w.reply(p, change(t, p, two, 1), nil)
	if len(out) != 1 || out[0] != (Changed{want.Encode()}) || w.block != want.Encode() || p.lock.Block() != w.block {
		t.Fatalf("%v", out)
	}
	for name, c := range map[string]struct {
		landed bool
		said   Answer
	}{
		"lost, and landed": {true, Answer{Status: Unknown}}, "lost": {false, Answer{Status: Unknown}},
		"a miscompare of its own": {true, Answer{Status: Miscompare}},
	} {
		w, p := holding(t)
		d := change(t, p, two, 1)
		if c.landed {
			w.execute(&command{from: p, op: d.Op})
		}
		look := lastDo(t, w.reply(p, d, &c.said))
		if _, ok := look.Op.(ReadBlock); !ok {
			t.Fatalf("%s: %T", name, look.Op)
		}
		look = lastDo(t, w.reply(p, look, &Answer{Status: Unknown})) // asked again
		out := w.reply(p, look, nil)
		if !c.landed {
			again := lastDo(t, out)
			if again.Op != d.Op {
				t.Fatalf("%s: it goes on with %T", name, again.Op)
			}
			out = w.reply(p, again, nil)
		}
		if len(out) != 1 || out[0] != (Changed{w.block}) || !p.lock.now.Paired() || p.lock.now.Turn != 1 {
			t.Errorf("%s: %v", name, out)
		}
	}
	for name, said := range map[string]Answer{"another's": {Status: Miscompare}, "a conflict": {Status: Conflict}} {
		w, p := holding(t)
		d := change(t, p, two, 1)
		w.block = Block{VM: ID{1}, Generation: 6, Owner: two, Attempt: 1, Held: true}.Encode()
		out := w.reply(p, d, &said)
		if said.Status == Miscompare {
			out = w.reply(p, lastDo(t, out), nil)
		}
		if s, ok := out[0].(Stop); !ok || !fault.Is(s.Err, fault.Fenced) || p.lock.State() != Over {
			t.Errorf("%s: %v", name, out)
		}
	}
}

// TestChangeInDoubt: a change that failed may have landed: the next one looks first, and so does a
// release; a check takes either for its own.
func TestChangeInDoubt(t *testing.T) {
	for _, landed := range []bool{false, true} {
		for _, then := range []string{"change", "release"} {
			w, p := holding(t)
			d := change(t, p, two, 1)
			if landed {
				w.execute(&command{from: p, op: d.Op})
			}
			out := w.reply(p, d, &Answer{Status: Failed, Err: fault.New(fault.Failed, "a medium error")})
			if r, ok := out[0].(Refused); !ok || !r.Change || p.lock.State() != Holding {
				t.Fatalf("%v", out)
			}
			if out := w.reply(p, lastDo(t, p.lock.Step(Check{})), nil); len(out) > 0 {
				t.Fatalf("a check: %v", out)
			}
			in := Input(Change{Owner{}, [16]byte{2}})
			if then == "release" {
				in = Release{}
			}
			look := lastDo(t, p.lock.Step(in))
			if _, ok := look.Op.(ReadBlock); !ok {
				t.Fatalf("it goes on with %T", look.Op)
			}
			out = w.reply(p, lastDo(t, w.reply(p, look, nil)), nil)
			b, err := Decode(w.block)
			turn := uint32(0)
			if landed {
				turn = 1
			}
			switch {
			case err != nil || b.Paired():
				t.Errorf("%s, landed %t: %+v, %v", then, landed, b, err)
			case then == "release" && (out[0] != (Done{}) || b.Held || b.Turn != turn):
				t.Errorf("released, landed %t: %v, %+v", landed, out, b)
			case then == "change" && (out[0] != (Changed{w.block}) || b.Turn != turn+1):
				t.Errorf("changed, landed %t: %v, %+v", landed, out, b)
			}
		}
	}
}

// TestReleaseAfterChange: a release waits for a change that is under way.
func TestReleaseAfterChange(t *testing.T) {
	w, p := holding(t)
	d := change(t, p, two, 1)
	if out := p.lock.Step(Release{}); len(out) > 0 {
		t.Fatalf("beside a change: %v", out)
	}
	out := w.reply(p, d, nil)
	if len(out) != 2 || out[0] != (Changed{w.block}) {
		t.Fatalf("%v", out)
	}
	if out = w.reply(p, lastDo(t, out), nil); out[0] != (Done{}) {
		t.Fatalf("%v", out)
	}
	if b, err := Decode(w.block); err != nil || b.Held || b.Paired() || b.Turn != 1 {
		t.Errorf("%+v, %v", b, err)
	}
}

// second begins a secondary's attempt from a block.
func second(t *testing.T, w *world, from [BlockSize]byte, attempt uint8) *process {
	t.Helper()
	l, err := NewLock(Config{VM: ID{1}, Me: two, Generation: 5, Attempt: attempt, Nonce: [16]byte{77, attempt}, Nexuses: w.nexuses, Pairing: &from})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{id: len(w.all), open: w.nexuses, lock: l}
	w.all = append(w.all, p)
	w.step(p, Begin{})
	return p
}

// TestSucceeds: a secondary takes the lock over from the block of its pairing, and its primary's
// writes land no more; from any other block it does not.
func TestSucceeds(t *testing.T) {
	w, p := holding(t)
	w.write(p, 1, 0)
	w.deliver(len(w.wire)-1, answered)
	w.reply(p, change(t, p, two, 1), nil)
	pairing := w.block
	s := second(t, w, pairing, 1)
	w.drive(s, 1000)
	b, err := Decode(w.block)
	if err != nil || !s.held || b.Owner != two || b.Turn != 2 || b.Paired() || b.Generation != 5 || b != s.lock.now {
		t.Fatalf("held %t, %v: %+v, %v", s.held, s.ended, b, err)
	}
	if w.current = s; len(w.volumes[1].tasks) > 0 {
		t.Error("a write of the primary may still land")
	}
	// The primary finds out whatever it does.
	d := change(t, p, Owner{}, 2)
	if out := w.reply(p, d, nil); len(out) != 1 || p.lock.State() != Over {
		t.Errorf("%v", out)
	}

	for name, spoil := range map[string]func(w *world, p *process){
		"the primary is alone": func(w *world, p *process) { w.reply(p, change(t, p, Owner{}, 2), nil) },
		"paired with another":  func(w *world, p *process) { w.reply(p, change(t, p, Owner{3, 1}, 2), nil) },
		"paired with it, anew": func(w *world, p *process) { w.reply(p, change(t, p, two, 2), nil) },
		"given back":           func(w *world, p *process) { p.lock.Step(Release{}); w.block = p.lock.givenBack() },
		"of a later placement": func(w *world, _ *process) {
			w.block = Block{VM: ID{1}, Generation: 6, Owner: two, Attempt: 1, Held: true}.Encode()
		},
		"of an earlier one": func(w *world, _ *process) {
			w.block = Block{VM: ID{1}, Generation: 4, Owner: two, Attempt: 1, Held: true}.Encode()
		},
		"its own later attempt's": func(w *world, _ *process) {
			w.block = Block{VM: ID{1}, Generation: 5, Owner: two, Attempt: 9, Held: true, Turn: 2}.Encode()
		},
	} {
		w, p := holding(t)
		w.reply(p, change(t, p, two, 1), nil)
		pairing := w.block
		spoil(w, p)
		was := w.block
		s := second(t, w, pairing, 2)
		w.drive(s, 1000)
		if s.held || !fault.Is(s.ended, fault.Stale) || w.block != was {
			t.Errorf("%s: held %t, %v", name, s.held, s.ended)
		}
	}
}

// TestSucceedsItself: a secondary whose attempt failed after its block had landed goes on with the
// next attempt.
func TestSucceedsItself(t *testing.T) {
	w, p := holding(t)
	w.reply(p, change(t, p, two, 1), nil)
	pairing := w.block
	s := second(t, w, pairing, 1)
	for w.block == pairing {
		w.drive(s, 1)
	}
	d := w.wire[len(w.wire)-1]
	w.wire = w.wire[:len(w.wire)-1]
	w.step(s, Answer{Seq: d.seq, Status: Failed, Err: fault.New(fault.Failed, "a medium error")})
	if !s.over || s.held {
		t.Fatal("the attempt goes on")
	}
	s = second(t, w, pairing, 2)
	w.drive(s, 1000)
	if !s.held || w.block != s.lock.Block() {
		t.Errorf("the next attempt: %v", s.ended)
	}
}

// TestNoPairOfTheirs: an attempt from a block that is not of a pair of its own cannot be made.
func TestNoPairOfTheirs(t *testing.T) {
	good := Block{VM: ID{1}, Generation: 5, Owner: one, Attempt: 1, Held: true, Turn: 1, Partner: two}
	cfg := Config{VM: ID{1}, Me: two, Generation: 5, Attempt: 1, Nexuses: []int{1}}
	for name, spoil := range map[string]func(*Block){
		"another machine": func(b *Block) { b.VM = ID{2} }, "another generation": func(b *Block) { b.Generation = 4 },
		"another partner": func(b *Block) { b.Partner.Boot++ }, "alone": func(b *Block) { b.Partner = Owner{} }, "given back": func(b *Block) { b.Held = false },
	} {
		b := good
		spoil(&b)
		p := b.Encode()
		cfg.Pairing = &p
		if _, err := NewLock(cfg); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := good.Encode()
	cfg.Pairing = &p
	if _, err := NewLock(cfg); err != nil {
		t.Error(err)
	}
}
