package testbed

import (
	"context"
	"fmt"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
)

// GroupState is what storage nodes say of a resource group.
type GroupState struct {
	// Owner is the node that serves it now; empty: nobody.
	Owner string
	// Epoch counts changes of owner, InSync the nodes that have all data.
	Epoch  uint64
	InSync int
	Target string
	// Detail is for a person who waits.
	Detail string
}

// groupPatience is how long a node may take to say how it is: one that is stopped says
// nothing, and the other's answer waits for it.
const groupPatience = 150 * time.Millisecond

// AskGroup asks all nodes, over their API: that is "group show", without a process for each
// question on a machine with few cores. Nobody answering is no error: no owner. The newest epoch
// is right: a node that was cut off still tells of the one it knew. How many are in sync is what
// the node says that serves.
func AskGroup(ctx context.Context, name string, nodes ...*Daemon) (GroupState, error) {
	var best GroupState
	var says []string
	for _, d := range nodes {
		g, err := d.group(ctx, name)
		if err != nil {
			says = append(says, fmt.Sprintf("%s: %v", d.Name, err))
			continue
		}
		says = append(says, fmt.Sprintf("%s: %s, owner %q, epoch %d, in sync %v (%s) %s", d.Name, g.State, g.Owner, g.Epoch, g.InSync, g.GetSync().GetState(), g.Problem))
		if g.Epoch < best.Epoch {
			continue
		}
		if g.Epoch > best.Epoch {
			best = GroupState{Epoch: g.Epoch}
		}
		if g.State == "serving" && (best.Owner == "" || d.Name == g.Owner) {
			best.Owner, best.InSync, best.Target = g.Owner, len(g.InSync), g.Target
		}
	}
	best.Detail = strings.Join(says, "; ")
	return best, ctx.Err()
}

func (d *Daemon) group(ctx context.Context, name string) (*steadfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	r, err := steadfastv1connect.NewGroupServiceClient(d.API(), "http://node").GetGroup(ctx, &steadfastv1.GetGroupRequest{Name: name})
	if err != nil {
		return nil, err
	}
	return r.Group, nil
}
