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
		for _, r := range h.ended() {
			said, err := h.say(r)
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
