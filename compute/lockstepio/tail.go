package lockstepio

import (
	"bytes"
	"log/slog"

	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
)

// tailMax is how much of a log is kept in memory, in bytes: more than LagBytes, so that the
// primary's has all from a difference on.
const tailMax = 32 << 20

// tail is the last of a pair's log, as far as a replay needs it: inputs, and digests of the
// machine.
type tail struct {
	list []lockstep.Record
	size int
}

// add appends a record; what is too old for tailMax is forgotten.
func (t *tail) add(r lockstep.Record) {
	cost := 0
	switch r := r.(type) {
	case lockstep.Entry:
		cost = sizeOf(r)
	case lockstep.Digest:
		if r.Stripe > 0 {
			return
		}
		cost = sizeOf(r)
	default:
		return
	}
	t.list = append(t.list, r)
	for t.size += cost; t.size > tailMax; t.list = t.list[1:] {
		t.size -= sizeOf(t.list[0])
		t.list[0] = nil
	}
}

// log returns it as a log of the machine's, which ends at a count.
func (t *tail) log(end uint64) ([]byte, error) {
	var b bytes.Buffer
	w, err := machine.NewLog(&b)
	if err != nil {
		return nil, err
	}
	for _, r := range t.list {
		switch r := r.(type) {
		case lockstep.Entry:
			err = w.Input(r.In)
		case lockstep.Digest:
			err = w.Hash(r.Count, r.Hash)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.End(end); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// keep hands a machine that differs from the other side's, and what led to it, to who keeps them.
func (o *Options) keep(m *machine.Machine, t *tail) {
	if o.Keep != nil {
		o.Keep(m)
	}
	if o.KeepLog == nil || t == nil {
		return
	}
	b, err := t.log(m.Count())
	if err != nil {
		o.Logger.Error("the log of a machine that differs is not kept", slog.Any("error", err))
		return
	}
	o.KeepLog(b)
}
