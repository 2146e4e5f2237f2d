package mirror

// A node that has no room stores nothing of a write, and says so; the other may
// have stored it already. The write is refused then, and nobody may find
// anything of it: the node that stored it gets back what the one without room
// has, while the operation holds its blocks. What is given back is stable before
// the client hears of it, for a loss of power must not bring back what was there
// in between. When the node without room goes meanwhile, the write may stand.
//
// A barrier's action is refused in the same way, for whatever reason, and the
// node that did it takes it back.

// full notes that this node had no room for a write, or refused a barrier.
func (m *Mirror) full(o *operation, why any) {
	switch {
	case o.restoring:
		m.fail() // there was room for what it takes the place of
		m.forget(o)
	case o.from != nil && o.op.Kind == mended: // it stays as it is
		o.damage.hopeless = true
		m.appliedInbound(o, nil)
	case o.damage.mending && o.op.Kind != Write: // likewise
		o.damage.mending, o.damage.hopeless = false, true
	case o.from != nil && (o.op.Kind == Barrier || o.op.Lists()):
		o.refused = true
		m.appliedInbound(o, why)
	case o.from != nil:
		o.refused = true
		m.do(Load{o.id, o.op}) // the owner may need it
	default:
		o.refused, o.local = true, true
		if o.op.Kind == Barrier {
			o.was = why
		}
	}
}

// restore makes both nodes the same again after one of them refused a write. It
// reports whether there is something to wait for. Everyone has answered.
func (m *Mirror) restore(o *operation) (wait bool) {
	there := len(m.at.Others) > 0 || m.stream != nil && m.stream.phase >= phaseEnding && o.number > 0
	if o.refused && !there {
		m.again(o) // who is being resynced may have stored it
	}
	switch {
	case o.restoring, m.cfg.Fault.has(keepRefused), o.refused && (o.refusedThere || !there):
		return false
	case o.refusedThere && !there: // and so is what was refused
		o.refusedThere = false
		return false
	case o.op.Kind == Barrier:
		m.undo(o)
	case o.refused:
		o.restoring, o.local, o.op.Durable = true, false, true
		m.do(Load{o.id, o.op})
	default:
		o.restoring, o.local, o.op.Durable, o.op.Payload = true, false, true, o.was
		m.apply(o, o.op)
	}
	return true
}

// undo has the node that did a barrier's action take it back.
func (m *Mirror) undo(o *operation) {
	o.restoring, o.op.Undo = true, true
	if o.refused {
		o.acks = nil
		m.forward(o)
		return
	}
	o.local = false
	m.apply(o, o.op)
}

// again has an operation's blocks copied once more by the resync, if there is one.
func (m *Mirror) again(o *operation) {
	if m.stream != nil {
		m.stream.steps.last().add(o.op.what())
	}
	if m.missed != nil {
		m.missed.steps.last().add(o.op.what())
	}
}
