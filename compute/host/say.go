package host

import (
	"cmp"
	"context"
	"slices"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
)

// wakeSpeaker has what is to be said said.
func (h *Host) wakeSpeaker() {
	select {
	case h.speaking <- struct{}{}:
	default:
	}
}

// speak is the goroutine that says how machines ended, until the inventory has it.
func (h *Host) speak() {
	var retry <-chan time.Time
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.speaking:
		case <-retry:
		}
		retry = nil
		for _, r := range h.unsaid() {
			said, err := h.sayAll(r)
			if err != nil && h.ctx.Err() == nil {
				h.log.Warn("how a machine ended could not be said", "machine", r.m.Name, "error", err)
			}
			if !said {
				retry = time.After(h.o.Times.Retry)
			}
		}
		h.wake() // what was said is forgotten
	}
}

// unsaid returns the runs of which something is to be said.
func (h *Host) unsaid() (list []*run) {
	for _, r := range h.all() {
		r.mu.Lock()
		if r.outcome != nil || len(r.words) > 0 {
			list = append(list, r)
		}
		r.mu.Unlock()
	}
	return list
}

// sayAll says what there is to be said of a run: its words, and then how it ended.
func (h *Host) sayAll(r *run) (said bool, err error) {
	for {
		r.mu.Lock()
		if len(r.words) == 0 {
			ended := r.outcome != nil
			r.mu.Unlock()
			if !ended {
				return true, nil
			}
			return h.say(r)
		}
		w := r.words[0]
		r.mu.Unlock()
		if err := h.sayWord(r, w); err != nil {
			return false, err
		}
		r.mu.Lock()
		r.words = r.words[1:]
		r.mu.Unlock()
	}
}

// wordKind is what is said of a pair.
type wordKind uint8

const (
	wordProtected wordKind = iota
	wordParted
	wordTookOver
)

// word is something that the inventory is to say of a machine's secondary.
type word struct {
	kind   wordKind
	pair   uint64 // 0: the run's own
	why    inventory.PartReason
	detail string
}

// say has the inventory say something of the machine's secondary.
func (r *run) say(w word) {
	if w.pair == 0 {
		w.pair = r.pair
	}
	r.mu.Lock()
	r.words = append(r.words, w)
	r.mu.Unlock()
	r.h.wakeSpeaker()
}

// sayWord has the inventory take a word in. One that is of no use any more is forgotten.
func (h *Host) sayWord(r *run, w word) error {
	ctx, cancel := context.WithTimeout(h.ctx, h.o.Times.Edit)
	defer cancel()
	return quorumio.Update(ctx, h.o.Member, func(inv quorum.Inventory) (edits []quorum.Edit, err error) {
		v, _ := inventory.Read(inv.Entries) // what cannot be read, the edit says
		if p := v.Placements[r.m.Name]; p == nil || p.ID != r.m.ID {
			return nil, nil
		}
		now := time.Now().UnixNano()
		switch w.kind {
		case wordProtected:
			edits, err = v.Protected(r.m.Name, r.generation, w.pair, now)
		case wordParted:
			edits, err = v.Part(r.m.Name, r.generation, w.pair, w.why, w.detail, now)
		case wordTookOver:
			edits, err = v.TookOver(r.m.Name, r.generation, w.pair, w.why, w.detail, now)
		}
		if fault.Is(err, fault.Stale) || fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		return edits, err
	})
}

// ended returns the runs of which something may have to be said.
func (h *Host) ended() (list []*run) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.runs {
		if r.saying() {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *run) int { return cmp.Compare(a.m.Name, b.m.Name) })
	return list
}

// say has the inventory say how a machine ended, by the rules of package placement: it is ended,
// or placed anew. false: not yet, for want of a quorum, or of a host that has room for it.
func (h *Host) say(r *run) (said bool, err error) {
	r.mu.Lock()
	outcome := *r.outcome
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(h.ctx, h.o.Times.Edit)
	defer cancel()
	err = quorumio.Update(ctx, h.o.Member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		v, _ := inventory.Read(inv.Entries) // placement knows what it cannot judge
		if said = !r.present(v.Placements[r.m.Name], h.o.Name); said {
			return nil, nil
		}
		now := time.Now().UnixNano()
		// This host's word alone. It has listened to nobody, so it declares nobody lost.
		word := []placement.Heard{{Node: quorum.Member(h.o.Name), Hosts: []placement.Report{{
			Host: h.o.Name, Boot: r.me.Boot, Machines: []placement.Machine{outcome},
		}}}}
		edits, err := placement.Edits(v, about(placement.Decide(v, word, now), r.m.Name), now)
		said = err == nil && len(edits) > 0
		return edits, err
	})
	return said && err == nil, err
}

// about picks what is decided of one machine.
func about(all []placement.Decision, machine string) (list []placement.Decision) {
	for _, d := range all {
		switch d := d.(type) {
		case placement.End:
			if d.Machine == machine {
				list = append(list, d)
			}
		case placement.Place:
			if d.Machine == machine {
				list = append(list, d)
			}
		}
	}
	return list
}

// Report is what this host has to say of machines that it knows to have ended and whose placement still is
// active: for who tells the nodes, beside what this host says itself.
func (h *Host) Report() (list []placement.Machine) {
	for _, r := range h.ended() {
		r.mu.Lock()
		list = append(list, *r.outcome)
		r.mu.Unlock()
	}
	return list
}
