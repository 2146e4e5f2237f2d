package lockstep

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/fault"
)

var testHead = Head{Session: Session{1, 2, 15: 3}, Link: Management}

// messages is one of each kind, and the bounds.
func messages() []Message {
	return []Message{
		Entry{&device.Input{At: 5}},
		Entry{&device.Input{At: 5, Port: 1<<16 - 1, Kind: 255, Status: 2, ID: 1<<64 - 1, Data: []byte("frame")}},
		Entry{&device.Input{At: 6, Data: make([]byte, InputMax)}},
		Horizon{1 << 40, 17},
		Digest{1 << 40, 3, machine.Hash{1, 15: 2}},
		Horizon{1<<64 - 1, 1<<64 - 1},
		Pairing{lockBlock(3, ownerP, ownerS)},
		Yield{},
		Finished{},
		Pages{1<<32 - 1, make([]byte, PartMax)},
		Pages{0, make([]byte, 4096)},
		Part{[]byte{1}},
		Part{make([]byte, PartMax)},
		Start{9, 8, machine.Hash{3}},
		Beat{},
		Ack{1 << 63, 2, 3},
		Ready{},
		Live{},
		Bye{WhyTooFast},
	}
}

// stream returns a stream of messages, and where each frame ends.
func stream(t *testing.T, list ...Message) (b []byte, ends []int) {
	t.Helper()
	w, b := NewWriter(testHead)
	ends = append(ends, len(b))
	for _, m := range list {
		var err error
		if b, err = w.Append(b, m); err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		ends = append(ends, len(b))
	}
	return b, ends
}

// read reads a stream to its end.
func read(b []byte) (list []Message, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	for {
		m, err := r.Next()
		if err != nil {
			if _, again := r.Next(); !errors.Is(again, err) {
				return list, errors.New("after an error there is another")
			}
			return list, err
		}
		list = append(list, m)
	}
}

// TestStream: what is sent is read.
func TestStream(t *testing.T) {
	want := messages()
	b, _ := stream(t, want...)
	r, err := NewReader(bytes.NewReader(b))
	if err != nil || r.Head() != testHead {
		t.Fatalf("%+v, %v", r.Head(), err)
	}
	got, err := read(b)
	if !errors.Is(err, io.EOF) {
		t.Fatalf("after %d messages: %v", len(got), err)
	}
	for i, m := range want {
		if i >= len(got) || !reflect.DeepEqual(got[i], m) {
			t.Fatalf("message %d, %T, is read as another", i, m)
		}
	}
}

// TestIdleBytes holds what a record costs: an idle guest's log is horizons.
func TestIdleBytes(t *testing.T) {
	w, _ := NewWriter(testHead)
	var b []byte
	for i := range uint64(1000) {
		var err error
		if b, err = w.Append(b, Horizon{i * 1_000_000, 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	if len(b) > 16*1000 {
		t.Errorf("a horizon takes %d bytes", len(b)/1000)
	}
}

// TestRefuses: a stream that is cut, flipped, replayed or of another kind is refused, and says
// which.
func TestRefuses(t *testing.T) {
	small := []Message{Entry{&device.Input{At: 5, Data: []byte("frame")}}, Horizon{9, 1}, Beat{}, Ack{1, 1, 1}, Pairing{lockBlock(1, ownerP, ownerS)}}
	b, ends := stream(t, small...)
	for n := range b {
		got, err := read(b[:n])
		at := 0
		for at < len(ends) && ends[at] < n {
			at++
		}
		switch whole := at < len(ends) && ends[at] == n; {
		case whole && (!errors.Is(err, io.EOF) || len(got) != at):
			t.Fatalf("ended after %d messages: %d, %v", at, len(got), err)
		case !whole && !fault.Is(err, fault.Unreachable):
			t.Fatalf("cut at byte %d: %v", n, err)
		}
	}
	for i := range b {
		for bit := range 8 {
			q := bytes.Clone(b)
			q[i] ^= 1 << bit
			got, err := read(q)
			if errors.Is(err, io.EOF) || len(got) >= len(small) {
				t.Fatalf("byte %d bit %d flipped: all was taken", i, bit)
			}
			for k, m := range got {
				if !reflect.DeepEqual(m, small[k]) {
					t.Fatalf("byte %d bit %d flipped: %v was taken", i, bit, m)
				}
			}
		}
	}
	frame := func(i int) []byte { return b[ends[i]:ends[i+1]] }
	head := b[:ends[0]]
	for name, c := range map[string]struct {
		b    []byte
		want fault.Kind
	}{
		"a frame twice":     {bytes.Join([][]byte{head, frame(0), frame(0)}, nil), fault.Stale},
		"a frame left out":  {bytes.Join([][]byte{head, frame(0), frame(2)}, nil), fault.Stale},
		"frames turned":     {bytes.Join([][]byte{head, frame(1), frame(0)}, nil), fault.Stale},
		"the head twice":    {bytes.Join([][]byte{head, b, b}, nil), fault.Corrupt},
		"nothing":           {nil, fault.Unreachable},
		"a length of a GiB": {append(bytes.Clone(head), 0x80, 0x80, 0x80, 0x80, 4), fault.Limit},
		"no length":         {append(bytes.Clone(head), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), fault.Corrupt},
	} {
		if _, err := read(c.b); !fault.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBounds: what no reader takes is not sent, and the stream is as before.
func TestBounds(t *testing.T) {
	w, b := NewWriter(testHead)
	for _, c := range []struct {
		m    Message
		want fault.Kind
	}{
		{Entry{&device.Input{Data: make([]byte, InputMax+smallMax)}}, fault.Limit},
		{Pages{0, make([]byte, PartMax+smallMax)}, fault.Limit},
		{Part{make([]byte, PartMax+smallMax)}, fault.Limit},
		{nil, fault.Invalid},
	} {
		if out, err := w.Append(b, c.m); !fault.Is(err, c.want) || len(out) != len(b) {
			t.Errorf("%T: %v", c.m, err)
		}
	}
	b, err := w.Append(b, Horizon{Count: 8})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(b, Entry{&device.Input{At: 7}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a count that goes back: %v", err)
	}
	if b, err = w.Append(b, Beat{}); err != nil {
		t.Fatal(err)
	}
	if got, err := read(b); len(got) != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzReader: whatever comes, it ends with a known kind; what is read is written to the same
// bytes.
func FuzzReader(f *testing.F) {
	w, b := NewWriter(testHead)
	for _, m := range messages() {
		if e, ok := m.(Entry); ok && len(e.In.Data) > 100 {
			continue
		}
		b, _ = w.Append(b, m)
	}
	f.Add(b)
	f.Add(b[:headSize])
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := NewReader(bytes.NewReader(in))
		if err != nil {
			if k := fault.KindOf(err); k != fault.Corrupt && k != fault.Unreachable && k != fault.Invalid {
				t.Fatal(err)
			}
			return
		}
		w, out := NewWriter(r.Head())
		for {
			m, err := r.Next()
			if err != nil {
				k := fault.KindOf(err)
				if !errors.Is(err, io.EOF) && k != fault.Corrupt && k != fault.Unreachable && k != fault.Stale && k != fault.Limit {
					t.Fatal(err)
				}
				break
			}
			if out, err = w.Append(out, m); err != nil {
				t.Fatalf("%T was read, and cannot be written: %v", m, err)
			}
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatal("what was read is written to other bytes")
		}
	})
}
