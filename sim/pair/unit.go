package pair

import (
	"slices"
	"time"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
	"steadfast/san/statevol"
)

// The volumes that device servers see: what mirrorio.Volume is, on fibers.

// call is an operation that the device server waits for.
type call struct {
	fiber    *fiber
	read     []byte // what a read, or a compare, fills
	off      int64
	expected []byte
	mismatch int64
	err      error
	over     bool
	alone    bool // a set of one answered
	host     int  // whose it is, -1 of nobody
}

var (
	errMoved   = fault.New(fault.Fenced, "the group is served elsewhere")
	errFull    = fault.New(fault.Full, "a node of the group has no room")
	errDamaged = fault.New(fault.Corrupt, "what is there cannot be read")
)

// perform puts an operation to the mirror and waits for its end.
func (n *node) perform(op mirror.Op, c *call) error {
	w := n.world
	f := w.running
	if !f.alive() {
		return errMoved
	}
	w.count.ids++
	c.fiber = f
	n.asks[w.count.ids] = &ask{call: c, kind: op.Kind, block: op.Block}
	n.step(mirror.Begin{ID: w.count.ids, Op: op})
	for !c.over {
		w.wait()
	}
	return c.err
}

// performApart is perform for a caller that may go on before it is done.
func (n *node) performApart(op mirror.Op, c *call) error {
	w := n.world
	c.fiber = w.running
	n.behind = append(n.behind, c)
	n.fork(func() {
		w.sleep(w.between(0, 10*time.Millisecond))
		own := &call{host: c.host}
		err := n.perform(op, own)
		c.alone = own.alone
		c.finish(err)
	})
	for !c.over {
		w.wait()
	}
	return c.err
}

// finish ends a call for the mirror.
func (c *call) finish(err error) {
	if c.over {
		return
	}
	if c.over = true; err != nil {
		c.err = err
	}
	c.fiber.wake()
}

// answerCall ends a call, if the operation is one, and reports whether it was.
func (n *node) answerCall(id uint64, err error) bool {
	a := n.asks[id]
	if a == nil || a.call == nil {
		return false
	}
	delete(n.asks, id)
	if err == nil {
		n.world.reads(n, a)
		a.call.alone = len(n.mirror.Standing().Others) == 0
	}
	a.call.finish(err)
	return true
}

// refuseCall is answerCall for what was not done.
func (n *node) refuseCall(e mirror.Refuse) bool {
	if e.Damaged {
		return n.answerCall(e.ID, errDamaged)
	}
	return n.answerCall(e.ID, errFull)
}

// volume is a volume of the group, as the device server and the state volume want
// it, while this node serves the group: mirrorio.Volume on fibers.
type volume struct {
	lun.StateKeeper
	service *service
	number  uint32
	size    int64
	cached  bool
}

var (
	_ lun.Volume   = (*volume)(nil)
	_ block.Device = (*volume)(nil)
)

func (v *volume) op(kind mirror.Kind, off, n int64) mirror.Op {
	first, end := off/block.BlockSize, (off+n+block.BlockSize-1)/block.BlockSize
	return mirror.Op{Kind: kind, Volume: v.number, Block: uint64(first), Count: uint64(end - first)}
}

// perform has the mirror do it. Who hears that the group is elsewhere hears no more
// of this node: its connections are mute.
func (v *volume) perform(op mirror.Op, c *call) error {
	n, w := v.service.node, v.service.node.world
	c.host = -1
	t := v.service.tasks[w.running]
	if t != nil {
		c.host = t.session.host.index
	}
	perform := n.perform
	if w.cfg.mutant("left-behind") && t != nil && op.Kind == mirror.Write {
		perform = n.performApart
	}
	err := perform(op, c)
	if t != nil {
		t.alone = t.alone && c.alone
		t.parts++
	}
	if fault.Is(err, fault.Fenced) {
		v.service.mute()
	}
	return err
}

// ReadAt implements block.Device.
func (v *volume) ReadAt(p []byte, off int64) error {
	c := &call{read: make([]byte, len(p)), off: off}
	err := v.perform(v.op(mirror.Read, off, int64(len(p))), c)
	copy(p, c.read)
	return err
}

// TryReadAt implements lun.Volume: nothing is in memory.
func (v *volume) TryReadAt([]byte, int64) bool { return false }

// WriteAt implements block.Device.
func (v *volume) WriteAt(p []byte, off int64, f block.Flags) error {
	return v.change(&mirrorio.Change{Kind: mirrorio.Data, Off: off, Length: int64(len(p)), Data: slices.Clone(p)}, f)
}

// Trim implements block.Device.
func (v *volume) Trim(off, n int64) error {
	return v.change(&mirrorio.Change{Kind: mirrorio.Trim, Off: off, Length: n}, 0)
}

// Zero implements block.Device, in parts as mirrorio.Volume does it.
func (v *volume) Zero(off, n int64, f block.Flags) error {
	for n > 0 {
		part := n
		switch rest := off % block.BlockSize; {
		case rest != 0:
			part = min(n, block.BlockSize-rest)
		case n > block.BlockSize:
			part = n / block.BlockSize * block.BlockSize
		}
		if err := v.change(&mirrorio.Change{Kind: mirrorio.Zero, Off: off, Length: part}, f); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (v *volume) change(c *mirrorio.Change, f block.Flags) error {
	op := v.op(mirror.Write, c.Off, c.Length)
	op.Durable, op.Payload = f&block.FUA != 0 || !v.cached, c
	if v.number == stateVolume && v.service.node.world.cfg.mutant("state-unflushed") {
		op.Durable = false
	}
	return v.perform(op, &call{})
}

// CompareAndWrite implements block.Device.
func (v *volume) CompareAndWrite(off int64, old, new []byte, f block.Flags) (int64, error) {
	op := v.op(mirror.Compare, off, int64(len(old)))
	op.Durable = f&block.FUA != 0 || !v.cached
	op.Payload = &mirrorio.Change{Kind: mirrorio.Data, Off: off, Length: int64(len(new)), Data: slices.Clone(new)}
	c := &call{read: make([]byte, len(old)), off: off, expected: slices.Clone(old), mismatch: -1}
	if v.service.node.world.cfg.mutant("compare-apart") {
		return v.compareApart(off, old, new, f)
	}
	err := v.perform(op, c)
	return c.mismatch, err
}

// compareApart reads, and then writes: what another writes between is lost.
func (v *volume) compareApart(off int64, old, new []byte, f block.Flags) (int64, error) {
	p := make([]byte, len(old))
	if err := v.ReadAt(p, off); err != nil {
		return -1, err
	}
	for i := range p {
		if p[i] != old[i] {
			return int64(i), nil
		}
	}
	return -1, v.WriteAt(new, off, f)
}

// Flush implements block.Device.
func (v *volume) Flush() error {
	if v.number == stateVolume && v.service.node.world.cfg.mutant("state-unflushed") {
		return nil
	}
	return v.perform(mirror.Op{Kind: mirror.Flush}, &call{})
}

// Size implements block.Device.
func (v *volume) Size() int64 { return v.size }

// ID implements lun.Volume.
func (v *volume) ID() [16]byte { return unitID(v.number) }

func unitID(n uint32) [16]byte { return [16]byte{0: byte(n), 15: 0x5f} }

// Name implements lun.Volume.
func (v *volume) Name() string { return volumeNames[v.number] }

// WriteCache implements lun.Volume.
func (v *volume) WriteCache() bool { return v.cached }

// SetWriteCache implements lun.Volume: nobody asks.
func (v *volume) SetWriteCache(bool) error { return errMoved }

// ReadOnly implements lun.Volume.
func (v *volume) ReadOnly() bool { return false }

// Mapped implements lun.Volume.
func (v *volume) Mapped(_, limit int64) (bool, int64, error) { return true, limit, nil }

// CopyFrom implements lun.Volume: nobody asks.
func (v *volume) CopyFrom(int64, lun.Volume, int64, int64, block.Flags) error { return errMoved }

// Attribute implements lun.Volume.
func (v *volume) Attribute(string) ([]byte, error) { return nil, nil }

// SetAttribute implements lun.Volume.
func (v *volume) SetAttribute(string, []byte) error { return nil }

// Watch implements lun.Volume.
func (v *volume) Watch(func(lun.Event)) (stop func()) { return func() {} }

// keeper is where a unit's state is kept; a broken rule of it is a mutant's.
type keeper struct {
	*statevol.Unit
	service *service
}

// SaveState implements lun.StateKeeper.
func (k keeper) SaveState(b []byte, durable bool) error {
	n := k.service.node
	n.world.count.states++
	if n.world.cfg.mutant("state-late") {
		n.fork(func() {
			k.service.late.Lock()
			defer k.service.late.Unlock()
			n.world.sleep(50 * time.Millisecond)
			_ = k.Unit.SaveState(b, durable) // nobody waits for it
		})
		return nil
	}
	return k.Unit.SaveState(b, durable)
}

// LoadState implements lun.StateKeeper.
func (k keeper) LoadState() ([]byte, error) {
	if k.service.node.world.cfg.mutant("state-unread") {
		return nil, nil
	}
	return k.Unit.LoadState()
}
