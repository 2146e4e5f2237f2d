package lun

import (
	"context"
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// Metadata is what is known of a volume without its content.
type Metadata struct {
	ID         [16]byte
	Name       string
	Size       int64 // bytes
	WriteCache bool
	ReadOnly   bool
}

// Standby is a Volume that another node serves: initiators see its unit through
// ports in the state standby, with the identity, the capacity and the
// reservations that it has there, and learn where to go. Whatever would touch
// the content fails with fault.Fenced; what would change the unit's state
// (PERSISTENT RESERVE OUT, MODE SELECT) is passed on to that node (PassOn), or
// answered as from a port in standby.
type Standby struct {
	load func() ([]byte, error)
	pass func(context.Context, Passed) (Answer, error)
	// ctx ends when the unit has another volume, or goes: what was passed on is
	// not waited for then.
	ctx context.Context
	end context.CancelFunc

	mu       sync.Mutex
	meta     Metadata
	watchers map[int]func(Event)
	next     int
}

var _ Volume = (*Standby)(nil)

// NewStandby returns the volume that m describes. load returns the state that
// the node which serves it saved last (StateKeeper), nothing when there is
// none; it is called for each command that tells of it. Without load such
// commands are answered as from a port in standby.
func NewStandby(m Metadata, load func() ([]byte, error)) *Standby {
	v := &Standby{load: load, meta: m, watchers: map[int]func(Event){}}
	v.ctx, v.end = context.WithCancel(context.Background())
	return v
}

// Update changes what the volume says of itself, all but its identity;
// initiators hear of what they can tell.
func (v *Standby) Update(m Metadata) {
	v.mu.Lock()
	old := v.meta
	m.ID = old.ID
	v.meta = m
	var fns []func(Event)
	for _, fn := range v.watchers {
		fns = append(fns, fn)
	}
	v.mu.Unlock()
	for _, fn := range fns {
		switch {
		case m.Size != old.Size:
			fn(Resized)
		case m.WriteCache != old.WriteCache || m.ReadOnly != old.ReadOnly:
			fn(Changed)
		}
	}
}

// isStandby reports whether v is one that another node serves.
func isStandby(v Volume) bool {
	_, ok := v.(*Standby)
	return ok
}

// state reads the unit's state as it was saved last.
func (v *Standby) state() (unitState, error) {
	if v.load == nil {
		return unitState{}, errStandby
	}
	b, err := v.load()
	if err != nil || len(b) == 0 {
		return unitState{}, err
	}
	st, err := decodeState(b)
	if err != nil || st.volume != v.ID() {
		return unitState{}, err
	}
	return st, nil
}

func (v *Standby) get() Metadata {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.meta
}

// fenced is what becomes of everything that needs the content.
func (v *Standby) fenced() error {
	return fault.New(fault.Fenced, "volume %s is served by another node", v.Name())
}

// ID implements Volume.
func (v *Standby) ID() [16]byte { return v.get().ID }

// Name implements Volume.
func (v *Standby) Name() string { return v.get().Name }

// Size implements block.Device.
func (v *Standby) Size() int64 { return v.get().Size }

// WriteCache implements Volume.
func (v *Standby) WriteCache() bool { return v.get().WriteCache }

// ReadOnly implements Volume.
func (v *Standby) ReadOnly() bool { return v.get().ReadOnly }

// SetWriteCache implements Volume.
func (v *Standby) SetWriteCache(bool) error { return v.fenced() }

// ReadAt implements block.Device.
func (v *Standby) ReadAt([]byte, int64) error { return v.fenced() }

// TryReadAt implements Volume.
func (v *Standby) TryReadAt([]byte, int64) bool { return false }

// WriteAt implements block.Device.
func (v *Standby) WriteAt([]byte, int64, block.Flags) error { return v.fenced() }

// Flush implements block.Device.
func (v *Standby) Flush() error { return v.fenced() }

// Trim implements block.Device.
func (v *Standby) Trim(_, _ int64) error { return v.fenced() }

// Zero implements block.Device.
func (v *Standby) Zero(_, _ int64, _ block.Flags) error { return v.fenced() }

// CompareAndWrite implements block.Device.
func (v *Standby) CompareAndWrite(int64, []byte, []byte, block.Flags) (int64, error) {
	return 0, v.fenced()
}

// Mapped implements Volume.
func (v *Standby) Mapped(_, _ int64) (bool, int64, error) { return false, 0, v.fenced() }

// CopyFrom implements Volume.
func (v *Standby) CopyFrom(int64, Volume, int64, int64, block.Flags) error { return v.fenced() }

// Attribute implements Volume: there are none.
func (v *Standby) Attribute(string) ([]byte, error) { return nil, nil }

// SetAttribute implements Volume.
func (v *Standby) SetAttribute(string, []byte) error { return v.fenced() }

// Watch implements Volume.
func (v *Standby) Watch(fn func(Event)) (stop func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.next
	v.next++
	v.watchers[n] = fn
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.watchers, n)
	}
}

// leaveOthers gives up what was passed on to the node that serves the unit, and
// is not answered yet: the unit goes.
func (u *unit) leaveOthers() {
	if v := u.standby(); v != nil {
		v.end()
	}
}
