package pair

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/mirror"
)

// What is held of the pair's family. Some of it at the moment that it happens (serves,
// reads), the rest of what clients saw when all is over: porcupine looks for an order
// of a block's operations in which each takes effect at some instant between its call
// and its answer, and each read finds what was written last. Blocks are judged one by
// one, for a history is linearizable if it is so for each object by itself.

// decided notes what the quorum decided, once.
func (w *world) decided(c quorum.Command, s *quorum.State, err error) {
	if s.Index <= w.count.index {
		return
	}
	w.count.index = s.Index
	if err != nil {
		w.note("refused: %s by %s%d: %v", c.Kind, c.By.Member, c.By.Boot, err)
		return
	}
	w.note("decided: %s by %s%d %s", c.Kind, c.By.Member, c.By.Boot, describe(s))
	switch c.Kind {
	case quorum.KindSucceed:
		w.count.takeovers++
	case quorum.KindHand:
		w.count.handed++
	case quorum.KindYield:
		w.count.yielded++
	case quorum.KindRevive:
		w.count.revived++
		if !w.cfg.durable {
			w.revivals = append(w.revivals, w.now)
		}
	case quorum.KindRemove:
		w.count.removed++
	case quorum.KindAdmit:
		w.count.admitted++
	case quorum.KindSettle:
		w.count.settled++
	default:
	}
}

func describe(s *quorum.State) string {
	g := s.Group[groupName]
	if g == nil {
		return ""
	}
	text := fmt.Sprintf("epoch %d: %s of", g.Epoch, g.Owner.Member)
	for _, e := range g.Set {
		text += " " + string(e.Member)
	}
	return text
}

// serves holds that one node serves in an epoch.
func (w *world) serves(n *node) {
	at := n.mirror.Standing()
	if at.Role != group.Owner || !at.Serving {
		return
	}
	if who, ok := w.owners[at.Epoch]; ok && who != n.index {
		w.fail("%s and %s both serve in epoch %d", memberOf(who), memberOf(n.index), at.Epoch)
	}
	w.owners[at.Epoch] = n.index
	// Whoever served before may not answer from what it has any more.
	o := w.nodes[1-n.index]
	if o.up && !w.cfg.mirror.Agent.Confirm && o.mirror.Standing().Epoch < at.Epoch && o.mirror.MayRead(o.time()) {
		w.fail("%s serves in epoch %d, and %s may read still", memberOf(n.index), at.Epoch, memberOf(o.index))
	}
}

// reads holds that nobody answers a read when another serves in a later epoch.
// Where reads are asked for, the answer may leave later than the proof came.
func (w *world) reads(n *node, a *ask) {
	o := w.nodes[1-n.index]
	if a.kind != mirror.Read || !o.up || w.cfg.mirror.Agent.Confirm {
		return
	}
	if at := o.mirror.Standing(); at.Serving && at.Epoch > n.mirror.Standing().Epoch {
		w.fail("%s answers a read, and %s serves in epoch %d", memberOf(n.index), memberOf(o.index), at.Epoch)
	}
}

// touch is one operation on one block.
type touch struct {
	write bool
	maybe bool // it was not answered
	value value
	// compare: value is written if expected is there.
	compare  bool
	expected value
	// differs: something else than expected is there.
	differs bool
	// loss is what a block may be after every memory was lost; of a loss only.
	loss []value
}

// register is one block. A write without an answer was done or was not, and nobody
// knows: so the model is one of sets of states. What was done after all must have been
// so by the instant that linearizable has found for it, or it is a ghost.
func register() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{value(0)} },
		Step: func(state, input, output any) []any {
			in := input.(touch)
			switch {
			case in.loss != nil:
				var states []any
				for _, v := range in.loss {
					states = append(states, v)
				}
				return states
			case in.differs && state.(value) == in.expected:
				return nil
			case in.differs:
				return []any{state}
			case in.compare && state.(value) != in.expected:
				if in.maybe {
					return []any{state}
				}
				return nil
			case in.maybe:
				return []any{state, in.value}
			case in.write:
				return []any{in.value}
			case state.(value) == output.(value):
				return []any{state}
			}
			return nil
		},
	}
	return model.ToModel()
}

// linearizable holds that each block was a register. An operation without an
// answer may have happened, but not after its client had another one done: that
// went to a session before which the old one's had ended.
func (w *world) linearizable() {
	bounds := make([]int64, len(w.ops))
	next := map[int]int64{}
	for i := len(w.ops) - 1; i >= 0; i-- {
		r := &w.ops[i]
		bound, ok := next[r.client]
		if !ok {
			bound = math.MaxInt64
		}
		if r.answered {
			bound = int64(r.ret)
			next[r.client] = bound
		}
		bounds[i] = bound
	}
	for b := range w.cfg.blocks {
		var history []porcupine.Operation
		for i, r := range w.ops {
			if r.kind == mirror.Barrier {
				if v, ok := w.snapshot(r.snapshot, b); ok && r.answered {
					history = append(history, porcupine.Operation{ClientId: r.client, Input: touch{}, Output: v, Call: int64(r.call), Return: bounds[i]})
				}
				continue
			}
			if b < r.block || b >= r.block+uint64(len(r.values)) || r.refused || r.kind == mirror.Read && !r.answered {
				continue
			}
			v := r.values[b-r.block]
			in := touch{write: r.kind != mirror.Read, maybe: !r.answered, value: v}
			if r.kind == mirror.Compare && (r.answered || len(r.values) == 1) {
				// Of two blocks without an answer, the other may have differed.
				in.compare, in.expected = true, r.expected[b-r.block]
			}
			history = append(history, porcupine.Operation{ClientId: r.client, Input: in, Output: v, Call: int64(r.call), Return: bounds[i]})
		}
		for k, t := range w.revivals {
			history = append(history, porcupine.Operation{ClientId: len(w.clients), Input: touch{loss: w.survivors(b, k)}, Output: value(0), Call: int64(t), Return: int64(t)})
		}
		// What is there in the end is read, too.
		history = append(history, porcupine.Operation{ClientId: len(w.clients) + 1, Input: touch{}, Output: w.nodes[0].toy.read(b).value, Call: int64(w.now), Return: int64(w.now) + 1})
		switch porcupine.CheckOperationsTimeout(register(), history, 5*time.Second) {
		case porcupine.Illegal:
			w.fail("block %d is no register", b)
			w.explain(b, bounds)
		case porcupine.Unknown:
			w.count.undecided++
		case porcupine.Ok:
		}
	}
}

// survivors lists what a block may hold after the k-th time that every memory was
// lost: what was written since the time before, unless it was overwritten by
// something that a flush had made stable; and if nothing was, what it may have
// held then. The register is told so, for nobody can say which of them it is.
func (w *world) survivors(b uint64, k int) (out []value) {
	after, t := instant(-1), w.revivals[k]
	if k > 0 {
		after = w.revivals[k-1]
	}
	flushed := instant(-1) // whatever was answered before is stable
	for _, r := range w.ops {
		if r.kind == mirror.Flush && r.answered && r.ret <= t {
			flushed = max(flushed, r.call)
		}
	}
	latest := instant(-1) // call of the last write that is stable
	for _, r := range w.ops {
		if r.writes(b) && r.answered && r.call > after && (r.ret <= flushed || r.alone && r.ret <= t) {
			latest = max(latest, r.call)
		}
	}
	switch {
	case latest >= 0:
	case k > 0:
		out = w.survivors(b, k-1)
	default:
		out = append(out, 0)
	}
	for _, r := range w.ops {
		if r.writes(b) && r.call <= t && (!r.answered || r.ret > after) && !(r.answered && r.ret < latest) {
			out = append(out, r.values[b-r.block])
		}
	}
	return out
}

func (r *record) writes(b uint64) bool {
	return !r.refused && (r.kind == mirror.Write || r.kind == mirror.Compare) && b >= r.block && b < r.block+uint64(len(r.values))
}

// explain adds a block's operations to the trace.
func (w *world) explain(b uint64, bounds []int64) {
	for i, r := range w.ops {
		if b < r.block || b >= r.block+uint64(len(r.values)) {
			continue
		}
		end := "never answered"
		if bounds[i] != math.MaxInt64 {
			end = time.Duration(bounds[i]).String()
		}
		w.note("block %d: client %d, %s to %s, answered %t: kind %d value %d", b, r.client, time.Duration(r.call), end, r.answered, r.kind, r.values[b-r.block])
	}
}

// snapshot returns what a snapshot has of a block, if any node has it.
func (w *world) snapshot(name value, b uint64) (value, bool) {
	for _, n := range w.nodes[:2] {
		if s := n.toy.snaps[name]; s != nil {
			return s[b], true
		}
	}
	return 0, false
}

// equal holds that both nodes have the same. It is not enough that clients see what
// they should: what only differs on the copy that nobody reads is lost at the next
// takeover.
func (w *world) equal() {
	a, b := w.nodes[0].toy, w.nodes[1].toy
	for block := range w.cfg.blocks {
		if x, y := a.read(block).value, b.read(block).value; x != y {
			w.fail("block %d is %d on a and %d on b", block, x, y)
		}
	}
	w.sameSnapshots(a, b)
	for _, name := range slices.Sorted(maps.Keys(a.snaps)) {
		if b.snaps[name] == nil {
			continue // it could not be read whole
		}
		w.count.snapshots++
		for block := range w.cfg.blocks {
			if x, y := a.snaps[name][block], b.snaps[name][block]; x != y {
				w.fail("block %d of snapshot %d is %d on a and %d on b", block, name, x, y)
			}
		}
	}
}
