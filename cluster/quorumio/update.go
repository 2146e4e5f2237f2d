package quorumio

import (
	"context"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// updateTries is how often a change is made again when another one came in between.
const updateTries = 5

// Editor is what a change of the inventory needs of a member.
type Editor interface {
	State() *quorum.State
	Edit(ctx context.Context, base quorum.Revision, edits ...quorum.Edit) error
}

// Update changes the inventory as edit says, which is asked again when another change
// came in between; no edits change nothing. Fails as edit does, as Member.Edit does, and
// with fault.Busy when others change it all the time.
func Update(ctx context.Context, m Editor, edit func(quorum.Inventory) ([]quorum.Edit, error)) error {
	var err error
	for range updateTries {
		inv := m.State().Inventory
		edits, refused := edit(inv)
		if refused != nil || len(edits) == 0 {
			return refused
		}
		if err = m.Edit(ctx, inv.Revision, edits...); !fault.Is(err, fault.Stale) {
			return err
		}
	}
	return fault.Wrap(fault.Busy, err, "others change the cluster at the same time; try again")
}
