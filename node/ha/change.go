package ha

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strconv"

	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/san/store"
)

// Change changes what a group is to be: change edits a copy, which is then
// entered unless another change came in between; then it is asked again. Fails
// with fault.NotFound, as change does, and as the quorum does.
func (gs *Groups) Change(ctx context.Context, name string, change func(*Spec) error) error {
	return Change(ctx, gs.cfg.Member, name, change)
}

// Guard tells why a group may not be changed: what stands on the group is others' to
// know. It is asked with the inventory and the group of the revision that the
// change is made at, so nothing can come to stand on it in between.
type Guard func(inv map[string][]byte, s *Spec) error

// guarded asks guards.
func guarded(inv map[string][]byte, s *Spec, guards []Guard) error {
	for _, g := range guards {
		if err := g(inv, s); err != nil {
			return err
		}
	}
	return nil
}

// Change is Groups.Change for a member that may have no part in the group. It
// fails as the guards do, too.
func Change(ctx context.Context, m quorumio.Editor, name string, change func(*Spec) error, guards ...Guard) error {
	return quorumio.Update(ctx, m, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		old, ok := inv.Entries[groupPrefix+name]
		if !ok {
			return nil, fault.New(fault.NotFound, "group %q does not exist", name)
		}
		s := &Spec{}
		if err := json.Unmarshal(old, s); err != nil {
			return nil, fault.Wrap(fault.Stale, err, "the record of group "+name)
		}
		if err := guarded(inv.Entries, s, guards); err != nil {
			return nil, err
		}
		if err := change(s); err != nil {
			return nil, err
		}
		e, err := s.edit()
		return []quorum.Edit{e}, err
	})
}

// Create enters a new group. s lacks what is given here: number, identifiers.
// Fails with fault.Exists, fault.Limit, and as the quorum does.
func Create(ctx context.Context, m quorumio.Editor, s *Spec) error {
	return quorumio.Update(ctx, m, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		if _, ok := inv.Entries[groupPrefix+s.Name]; ok {
			return nil, fault.New(fault.Exists, "group %q exists already", s.Name)
		}
		if _, ok := m.State().Group[s.Name]; ok {
			return nil, fault.New(fault.Busy, "a group %q is still being deleted; try again in a moment", s.Name)
		}
		last, _ := strconv.Atoi(string(inv.Entries[numberKey]))
		if last >= GroupsMax {
			return nil, fault.New(fault.Limit, "%d groups were made in this cluster, and there are no more numbers", last)
		}
		s.Number, s.StateID = uint16(last+1), newID()
		e, err := s.edit()
		return []quorum.Edit{e, {Key: numberKey, Value: []byte(strconv.Itoa(last + 1))}}, err
	})
}

// Delete takes a group without volumes out of the inventory; its nodes follow. It
// fails as the guards do, too.
func Delete(ctx context.Context, m quorumio.Editor, name string, guards ...Guard) error {
	return quorumio.Update(ctx, m, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		specs, err := Specs(map[string][]byte{groupPrefix + name: inv.Entries[groupPrefix+name]})
		switch {
		case inv.Entries[groupPrefix+name] == nil:
			return nil, fault.New(fault.NotFound, "group %q does not exist", name)
		case err != nil:
			return nil, err
		case len(specs[0].Volumes) > 0:
			return nil, fault.New(fault.Busy, "group %q has %d volumes; delete them first, for example \"steadfast volume delete %s\"", name, len(specs[0].Volumes), specs[0].Volumes[0].Name)
		}
		if err := guarded(inv.Entries, specs[0], guards); err != nil {
			return nil, err
		}
		b, err := json.Marshal(append(goneGroups(inv.Entries), specs[0].StateID))
		return []quorum.Edit{{Key: groupPrefix + name}, {Key: goneKey, Value: b}}, fault.Wrap(fault.Internal, err, "the groups that are gone")
	})
}

// goneGroups returns the groups that were deleted, by the identifier of their
// state volume.
func goneGroups(inv map[string][]byte) (ids []string) {
	if err := json.Unmarshal(inv[goneKey], &ids); err != nil {
		return nil // there is no such record yet
	}
	return ids
}

// Drain says whether a node takes groups.
func Drain(ctx context.Context, m quorumio.Editor, node quorum.Member, on bool) error {
	return quorumio.Update(ctx, m, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		if Drained(inv.Entries, node) == on {
			return nil, nil
		}
		e := quorum.Edit{Key: drainedPrefix + string(node)}
		if on {
			e.Value = []byte("1")
		}
		return []quorum.Edit{e}, nil
	})
}

// AddVolume enters a volume; v lacks number and identifier. It returns it whole.
func (s *Spec) AddVolume(v Volume) (Volume, error) {
	if len(s.Volumes) >= VolumesMax {
		return v, fault.New(fault.Limit, "group %q has %d volumes, and has no place for more; make another group", s.Name, len(s.Volumes))
	}
	s.Last++
	v.Number, v.ID, v.Place = s.Last, newID(), 1
	for slices.ContainsFunc(s.Volumes, func(o Volume) bool { return o.Place == v.Place }) {
		v.Place++
	}
	s.Volumes = append(s.Volumes, v)
	return v, nil
}

func newID() string {
	var id store.ID
	// Since Go 1.24 it ends the process rather than return an error.
	_, _ = rand.Read(id[:])
	return hexID(id)
}
