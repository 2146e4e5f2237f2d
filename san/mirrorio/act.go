package mirrorio

import (
	"slices"

	"steadfast/fault"
	"steadfast/san/mirror"
)

// ActionMax bounds an action, in bytes.
const ActionMax = 1 << 20

// Barrier has an action done on both nodes, at one moment of all volumes of the
// group: Options.Act does it. When it returns nil it is done on every node of the
// set, and stable as far as Act made it so. A refusal of either node is its error,
// and the other has taken it back. fault.Fenced: it is not known here whether it
// was done.
func (g *Group) Barrier(action []byte) error { return g.Snapshot(0, action) }

// Snapshot is Barrier for an action that takes snapshots: Snapshots lists them then,
// all with this moment. A resync makes them on a node that is away now. Fails as
// Barrier does.
func (g *Group) Snapshot(at mirror.Moment, action []byte) error {
	if len(action) > ActionMax {
		return fault.New(fault.Invalid, "an action of %d bytes", len(action))
	}
	c := &Change{Kind: Act, Length: int64(len(action)), Data: slices.Clone(action)}
	return g.begin(mirror.Op{Kind: mirror.Barrier, Durable: true, Moment: at, Payload: c}, &request{})
}

// act does a barrier's action, or takes it back.
func (g *Group) act(op *mirror.Op, c *Change) mirror.Applied {
	do, doing := g.opt.Act, "do a barrier's action"
	if op.Undo {
		do, doing = g.opt.Undo, "take a barrier's action back"
	}
	var err error
	if do != nil {
		err = do(c.Data)
	}
	if !op.Undo && refusal(err) {
		return mirror.Applied{Full: true, Payload: refusalOf(err)}
	}
	return mirror.Applied{Position: g.opt.Store.Position(), Failed: g.failed(doing, err)}
}

// refusal tells whether an error is about what was asked, and not of a node that
// has failed.
func refusal(err error) bool {
	if err == nil {
		return false
	}
	switch fault.KindOf(err) {
	case fault.Full, fault.Limit, fault.Exists, fault.NotFound, fault.Busy, fault.Invalid, fault.Denied, fault.ReadOnly, fault.Stale:
		return true
	default:
		return false
	}
}

// refusalOf makes the form in which a refusal goes to the other node: its kind's
// name, a zero byte, and its text.
func refusalOf(err error) *Change {
	b := append([]byte(fault.KindOf(err).String()), 0)
	b = append(b, err.Error()...)
	return &Change{Kind: Act, Length: int64(len(b)), Data: b}
}

// refusedBy reads that.
func refusedBy(c *Change) error {
	for i, b := range c.Data {
		if b != 0 {
			continue
		}
		for _, k := range fault.Kinds() {
			if k.String() == string(c.Data[:i]) {
				return fault.New(k, "%s", c.Data[i+1:])
			}
		}
		break
	}
	return fault.New(fault.Internal, "a node of the group refused it")
}

// refuse answers a client's operation that was not done.
func (g *Group) refuse(e mirror.Refuse) {
	why, ok := e.Why.(*Change)
	switch {
	case ok && why.Kind == Act:
		g.finish(e.ID, refusedBy(why))
	case e.Damaged:
		g.finish(e.ID, errDamaged)
	default:
		g.finish(e.ID, errFull)
	}
}
