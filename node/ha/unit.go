package ha

import (
	"sync"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/mirrorio"
	"steadfast/san/store"
)

// copyPiece bounds the bytes that one step of a copy reads and writes.
const copyPiece = 1 << 20

// unit is a mirrored volume as the device server wants it, while this node
// serves the group.
type unit struct {
	*mirrorio.Volume
	lun.StateKeeper

	s    *service
	id   [16]byte
	here *store.Volume // this node's copy

	mu       sync.Mutex
	v        Volume
	told     int64 // the size that watchers know
	watchers map[int]func(lun.Event)
	next     int
	notices  []lun.Notice  // for initiators of the other node's portals
	brought  chan struct{} // closed when they were; nil without any
	telling  bool          // some are being brought there
}

var (
	_ lun.Volume        = (*unit)(nil)
	_ lun.SpaceReporter = (*unit)(nil)
	_ lun.StateKeeper   = (*unit)(nil)
)

func newUnit(s *service, v Volume) (*unit, error) {
	id, err := parseID(v.ID)
	if err != nil {
		return nil, err
	}
	s.g.mu.Lock()
	m, ps := s.g.mirror, s.g.store
	s.g.mu.Unlock()
	if m == nil || ps == nil {
		return nil, fault.New(fault.Fenced, "the group is closing")
	}
	here, ok := ps.Volume(v.Number)
	if !ok {
		return nil, fault.New(fault.NotFound, "volume %q is not on this node yet", v.Name)
	}
	place, err := s.state.Unit(v.Place)
	if err != nil {
		return nil, err
	}
	u := &unit{s: s, id: id, here: here, v: v, watchers: map[int]func(lun.Event){}, StateKeeper: place}
	u.told = u.size()
	u.Volume = m.Volume(v.Number, u.size, u.WriteCache)
	return u, nil
}

// size is what initiators may use: what the group has, once this node's copy has
// it as well.
func (u *unit) size() int64 { return min(u.now().Size, u.here.Size()) }

func (u *unit) now() Volume {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.v
}

// follow takes in what the spec says of the volume now. It comes twice when a volume has
// grown: with the spec, and when this node's copy has grown as well, in either order.
func (u *unit) follow(v Volume) {
	u.mu.Lock()
	old := u.v
	u.v = v
	size := min(v.Size, u.here.Size())
	resized := size != u.told
	u.told = size
	var told []func(lun.Event)
	for _, fn := range u.watchers {
		told = append(told, fn)
	}
	u.mu.Unlock()
	for _, fn := range told {
		if resized {
			fn(lun.Resized)
		}
		if v.WriteCache != old.WriteCache || v.ReadOnly != old.ReadOnly {
			fn(lun.Changed)
		}
	}
}

// fenced mutes the group's connections before an initiator hears that this
// node may not serve it any more: the other one will, and I/O goes on there.
//
// Those of this node's own portals stay. They hear of it when the unit is on
// standby here, for then their next try is told to go elsewhere. An access state in
// transition would have Linux try five times at once, and then a second later.
func (u *unit) fenced(err error) error {
	if fault.Is(err, fault.Fenced) {
		u.s.g.cfg.Targets.Mute(u.s.tag)
		u.s.awaitGiven()
	}
	return err
}

// ID implements lun.Volume.
func (u *unit) ID() [16]byte { return u.id }

// Name implements lun.Volume.
func (u *unit) Name() string { return u.now().Name }

// WriteCache implements lun.Volume.
func (u *unit) WriteCache() bool { return u.now().WriteCache }

// ReadOnly implements lun.Volume.
func (u *unit) ReadOnly() bool { return u.now().ReadOnly }

// SetWriteCache implements lun.Volume: for both nodes, and for later owners.
func (u *unit) SetWriteCache(on bool) error {
	if !on {
		if err := u.Flush(); err != nil {
			return err
		}
	}
	number := u.now().Number
	err := u.s.g.gs.Change(u.s.ctx, u.s.g.name, func(s *Spec) error {
		for i := range s.Volumes {
			if s.Volumes[i].Number == number {
				s.Volumes[i].WriteCache = on
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	v := u.now()
	v.WriteCache = on
	u.follow(v)
	if !on {
		return u.Flush() // what was answered between is stable, too
	}
	return nil
}

// ReadAt implements block.Device.
func (u *unit) ReadAt(p []byte, off int64) error { return u.fenced(u.Volume.ReadAt(p, off)) }

// WriteAt implements block.Device.
func (u *unit) WriteAt(p []byte, off int64, flags block.Flags) error {
	return u.fenced(u.Volume.WriteAt(p, off, flags))
}

// Flush implements block.Device.
func (u *unit) Flush() error { return u.fenced(u.Volume.Flush()) }

// Trim implements block.Device.
func (u *unit) Trim(off, n int64) error { return u.fenced(u.Volume.Trim(off, n)) }

// Zero implements block.Device.
func (u *unit) Zero(off, n int64, flags block.Flags) error {
	return u.fenced(u.Volume.Zero(off, n, flags))
}

// CompareAndWrite implements block.Device.
func (u *unit) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	at, err := u.Volume.CompareAndWrite(off, old, new, flags)
	return at, u.fenced(err)
}

// Mapped implements lun.Volume: as this node's copy has it.
func (u *unit) Mapped(off, limit int64) (bool, int64, error) { return u.here.Mapped(off, limit) }

// CopyFrom implements lun.Volume. Both nodes get the bytes: a copy by reference
// would need the source to be the same on both at one moment.
func (u *unit) CopyFrom(dst int64, from lun.Volume, src, n int64, flags block.Flags) error {
	return CopyBytes(u, dst, from, src, n, flags)
}

// CopyBytes copies from one volume to another by reading and writing, for
// volumes that cannot share blocks.
func CopyBytes(to block.Device, dst int64, from block.Device, src, n int64, flags block.Flags) error {
	buf := make([]byte, min(n, copyPiece))
	for n > 0 {
		b := buf[:min(n, copyPiece)]
		if err := from.ReadAt(b, src); err != nil {
			return err
		}
		if err := to.WriteAt(b, dst, flags); err != nil {
			return err
		}
		dst, src, n = dst+int64(len(b)), src+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// Attribute implements lun.Volume. What initiators can tell of a mirrored unit
// is kept by its StateKeeper; but a volume may have had reservations before it
// was one.
func (u *unit) Attribute(string) ([]byte, error) { return nil, nil }

// SetAttribute implements lun.Volume.
func (u *unit) SetAttribute(string, []byte) error { return nil }

// Watch implements lun.Volume.
func (u *unit) Watch(fn func(lun.Event)) (stop func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.next
	u.next++
	u.watchers[n] = fn
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.watchers, n)
	}
}

// Space implements lun.SpaceReporter.
func (u *unit) Space() (available, used int64) {
	u.s.g.mu.Lock()
	pool := u.s.g.pool
	u.s.g.mu.Unlock()
	if pool == nil {
		return 0, 0
	}
	st := pool.Status()
	if v, err := pool.Volume(u.here.Name()); err == nil {
		used = v.Referenced
	}
	return max(0, st.Capacity-st.Used), used
}
