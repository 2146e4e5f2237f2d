package ha

import (
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"slices"

	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/san/mirrorio"
	"steadfast/san/store"
)

// A deletion that one node did and the other refused would leave them different until
// the next resync, and bring back by that what somebody was told is gone. All that can
// be in its way is that somebody reads the snapshot: so a deletion is decided when its
// barrier is, and a node that cannot follow at once does it when the reader has gone.
// A node that ends before forgets it, and is told by the resync of its next life.

// late is a snapshot that is to be deleted on this node, of the volumes that had it:
// of all of them in one step.
type late struct {
	name    string
	moment  int64
	volumes []uint32 // ascending
}

// dropSoon is dropSnapshots, now or as soon as nobody has one of them open.
func (g *Group) dropSoon(pool *store.Pool, names []string, snapshot string, moment int64) error {
	err := dropSnapshots(pool, names, snapshot, moment)
	if !fault.Is(err, fault.Busy) {
		return err
	}
	g.cfg.Log.Info("a snapshot is in use, and is deleted when it is not", "group", g.name, "snapshot", snapshot, "error", err)
	for _, v := range g.Spec().Volumes {
		if !slices.Contains(names, v.Name) {
			continue
		}
		all, err := pool.Snapshots(v.Name)
		if err != nil {
			continue // it was deleted just now
		}
		for _, s := range all {
			if s.Name == snapshot && (moment == 0 || s.Created.UnixNano() == moment) {
				g.putLate(snapshot, s.Created.UnixNano(), v.Number)
			}
		}
	}
	return nil
}

// putLate notes what is to be deleted.
func (g *Group) putLate(name string, moment int64, volumes ...uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.late, func(l late) bool { return l.name == name && l.moment == moment })
	if i < 0 {
		i = len(g.late)
		g.late = append(g.late, late{name: name, moment: moment})
	}
	all := append(slices.Clone(g.late[i].volumes), volumes...)
	slices.Sort(all)
	g.late[i].volumes = slices.Compact(all)
}

// dropLate deletes what could not be deleted before. Of run.
func (g *Group) dropLate() {
	g.mu.Lock()
	list, pool, spec, owner := g.late, g.pool, g.spec, g.standing.Role == group.Owner
	if pool != nil {
		g.late = nil
	}
	g.mu.Unlock()
	if pool == nil {
		return
	}
	var gone []late
	for _, l := range list {
		var names []string
		for _, v := range spec.Volumes {
			if slices.Contains(l.volumes, v.Number) {
				names = append(names, v.Name)
			}
		}
		switch err := dropSnapshots(pool, names, l.name, l.moment); {
		case err == nil:
			gone = append(gone, l)
		case fault.Is(err, fault.Busy):
			g.putLate(l.name, l.moment, l.volumes...)
		default:
			g.cfg.Log.Error("a snapshot cannot be deleted", "group", g.name, "snapshot", l.name, "error", err)
		}
	}
	if owner && len(gone) > 0 {
		// A resync may have given it to the other node meanwhile.
		g.gs.tasks.Go(func() { g.dropThere(gone) })
	}
}

// dropThere has the other node delete what this one did.
func (g *Group) dropThere(list []late) {
	g.actions.Lock()
	defer g.actions.Unlock()
	for _, l := range list {
		err := g.barrier(action{Do: doDeleteSnapshot, Name: l.name, Of: l.moment, Volumes: l.volumes})
		if err != nil && !fault.Is(err, fault.Fenced) { // whoever owns it now has it from a resync
			g.cfg.Log.Warn("the other node may have a snapshot that was deleted", "group", g.name, "snapshot", l.name, "error", err)
		}
	}
}

// copyOf is the group's store as the mirror has it: what the resync cannot do is
// known here.
type copyOf struct {
	*mirrorio.PoolStore
	g *Group
}

// Prune implements mirrorio.Snapshots. What is in use goes later.
func (c copyOf) Prune(list []mirrorio.Snapshot) error {
	err := c.PoolStore.Prune(list)
	if !fault.Is(err, fault.Busy) {
		return err
	}
	have, err := c.Snapshots()
	for _, s := range have {
		if !s.Within(list) {
			c.g.putLate(s.Name, int64(s.Moment), s.Volume)
		}
	}
	return err
}

// Unreadable implements mirrorio.Losses.
func (c copyOf) Unreadable(s mirrorio.Snapshot) {
	c.g.publish(Error, "snapshot-unreadable", c.Volumes()[s.Volume], "snapshot %q cannot be read whole on this node, and so the other node has none", s.Name)
}

// A comparison of both copies is made of snapshots, which it deletes when it ends. An
// owner that dies or gives the group away before leaves them: whoever serves the group
// next deletes those that no comparison of its own has made.

var verificationForm = regexp.MustCompile(`^verify-[0-9a-f]{12}$`)

// isVerification tells whether a snapshot is a comparison's.
func isVerification(snapshot string) bool { return verificationForm.MatchString(snapshot) }

// OwnSnapshot tells whether a snapshot of a group's volume was made for the nodes'
// own purposes, a resync's or a comparison's, and comes and goes by itself.
func OwnSnapshot(name string) bool { return name == ResyncSnapshot || isVerification(name) }

// Freeze takes a snapshot of volumes on both nodes for a comparison, under a name of
// its own. end deletes it. Fails as Snapshot does.
func (g *Group) Freeze(volumes []uint32) (name string, end func() error, err error) {
	var b [6]byte
	_, _ = rand.Read(b[:]) // since Go 1.24 it ends the process rather than return an error
	name = "verify-" + hex.EncodeToString(b[:])
	g.verifying(name, true)
	if err := g.snapshot(name, volumes); err != nil {
		g.verifying(name, false)
		return "", nil, err
	}
	return name, func() error {
		defer g.verifying(name, false)
		return g.DeleteSnapshot(name, volumes)
	}, nil
}

// verifying notes that a comparison of this node goes on, or has ended.
func (g *Group) verifying(name string, on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if on {
		g.verifications[name] = true
	} else {
		delete(g.verifications, name)
	}
}

// tidy deletes what comparisons have left that ended with their node. Of run.
func (g *Group) tidy() {
	s := g.serving
	if s == nil || !s.tidied.CompareAndSwap(false, true) {
		return
	}
	g.gs.tasks.Go(func() {
		if err := g.DropVerifications(); err != nil {
			g.cfg.Log.Warn("the snapshots of a comparison that was cut off are there still", "group", g.name, "error", err)
			s.tidied.Store(false) // it is tried again when the group is looked at next
		}
	})
}

// DropVerifications deletes the snapshots of comparisons that do not go on. Fails as
// DeleteSnapshot does.
func (g *Group) DropVerifications() error {
	g.mu.Lock()
	pool, spec := g.pool, g.spec
	g.mu.Unlock()
	if pool == nil {
		return fault.New(fault.Fenced, "group %q is not open on this node", g.name)
	}
	stale := map[string][]uint32{}
	for _, v := range spec.Volumes {
		all, err := pool.Snapshots(v.Name)
		if fault.Is(err, fault.NotFound) {
			continue // it is new, or was deleted just now
		}
		if err != nil {
			return err
		}
		for _, s := range all {
			g.mu.Lock()
			on := g.verifications[s.Name]
			g.mu.Unlock()
			if isVerification(s.Name) && !on {
				stale[s.Name] = append(stale[s.Name], v.Number)
			}
		}
	}
	for name, volumes := range stale {
		if err := g.DeleteSnapshot(name, volumes); err != nil {
			return err
		}
		g.publish(Info, "verify-left", "", "a comparison that had ended with its node had left snapshot %s, which was deleted", name)
	}
	return nil
}
