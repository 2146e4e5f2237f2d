package node

import (
	"steadfast/cluster/inventory"
	"steadfast/fault"
	"steadfast/node/ha"
)

// What machines stand on is not taken away under them: the guards below are asked
// of the revision of the inventory that a change is made at, and the inventory's own
// rules ask whether the volumes are there. So neither can overtake the other.

// unusedVolume refuses to delete or rename a volume, given by its number in the
// group, that a machine has.
func unusedVolume(number uint32) ha.Guard {
	return func(inv map[string][]byte, s *ha.Spec) error {
		for _, v := range s.Volumes {
			if v.Number != number {
				continue
			}
			// What cannot be read counts as using it: UsedBy says so.
			view, _ := inventory.Read(inv)
			machine, used, err := view.UsedBy(s.Name, v.Name)
			switch {
			case err != nil:
				return err
			case used:
				return fault.New(fault.Busy, "volume %q is the home or a disk of the machine %q, and stays as it is while that has it; take the disk away, or delete the machine: \"steadfast vm delete %s\"", v.Name, machine, machine)
			}
		}
		return nil
	}
}

// unusedMirrored refuses to show a volume to initiators of people's, or to change how it is
// written, while a machine has it: its hosts reach it without a mapping, and nobody else
// is to write there. A machine that comes to have it at this moment is looked at when it is
// registered.
func (n *Node) unusedMirrored(m mirrored) error {
	err := unusedVolume(m.Number)(m.c.member.State().Inventory.Entries, m.spec)
	return fault.Wrap(fault.KindOf(err), err, "its hosts see it without a mapping")
}

// noDatastore refuses to delete a group that is a datastore.
func noDatastore(inv map[string][]byte, s *ha.Spec) error {
	view, _ := inventory.Read(inv)
	datastore, is, err := view.DatastoreOf(s.Name)
	switch {
	case err != nil:
		return err
	case is:
		return fault.New(fault.Busy, "group %q is the datastore %q; remove that first: \"steadfast datastore remove %s\"", s.Name, datastore, datastore)
	}
	return nil
}

// noHost refuses to remove a member that machines may run on.
func noHost(inv map[string][]byte, member string) error {
	view, _ := inventory.Read(inv)
	if _, is := view.Hosts[member]; is {
		return fault.New(fault.Busy, "%s is a host of cluster %q; remove it there first: \"steadfast host remove %s\"", member, view.Hosts[member].Cluster, member)
	}
	return nil
}
