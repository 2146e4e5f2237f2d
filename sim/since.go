package sim

import (
	"fmt"

	"steadfast/san/store/storetest"
)

// since remembers what a volume holds at a position, or moves its base, or asks
// for all that is remembered what has changed.
func (h *history) since() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	switch n := h.rand.IntN(12); {
	case n < 5:
		h.model.Remember(t.Name, h.pool.Position(), h.rand.IntN)
		h.note("remember %s at %d", t.Name, h.pool.Position())
		if t.Tracked {
			return nil
		}
		return h.setBase(t)
	case n < 7:
		return h.setBase(t)
	case n == 7:
		return h.settle(storetest.ClearBase{Volume: t.Name}, false, h.pool.ClearBase(t.Name))
	default:
		return h.askSince()
	}
}

// setBase makes a moment that is remembered a volume's base, or else the present.
func (h *history) setBase(t target) error {
	op := storetest.SetBase{Volume: t.Name, Base: h.pool.Position(), At: h.model.At()}
	if list := h.model.Moments(t.Name); len(list) > 0 && h.rand.IntN(2) == 0 {
		m := list[h.rand.IntN(len(list))]
		op.Base, op.At = m.Position, m.At
	}
	return h.settle(op, false, h.pool.SetBase(t.Name, op.Base))
}

// askSince holds the pool's word on what has changed against the model.
func (h *history) askSince() error {
	if h.world.Ended() {
		return nil
	}
	answers, refusals, err := h.model.Since(h.pool)
	h.counts.asked += answers
	h.note("asked what has changed: %d answers, %d refusals", answers, refusals)
	if err != nil {
		return h.pass(fmt.Errorf("since: %w", err))
	}
	return nil
}
