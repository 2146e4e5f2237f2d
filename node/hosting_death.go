package node

import (
	"context"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
)

// hostDied declares a host lost whose process has ended, by the word of its guard: its
// machines run elsewhere without the wait for its silence. They have ended with it, as
// their processes do with their parent; were one of them slow in that, the lock on its home
// volume is what keeps it from the disks, as ever.
//
// All storage nodes are told, and all declare it: one edit takes effect.
func (n *Node) hostDied(dead quorum.Incarnation) {
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c == nil || c.placer == nil {
		return
	}
	name := string(dead.Member)
	if life := c.placer.look(c.member.State().Inventory).Lives[name]; life == nil || memberOf(life.ID) != dead.Boot {
		return // it is no host, or its life is one of another process
	}
	n.background.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, placeTime)
		defer cancel()
		boot, lost := uint32(0), false
		_, err := n.amend(ctx, func(v *inventory.View) ([]quorum.Edit, error) {
			life := v.Lives[name]
			lost = life != nil && memberOf(life.ID) == dead.Boot && life.State == inventory.Up
			if life == nil || memberOf(life.ID) != dead.Boot {
				return nil, nil
			}
			boot = life.Boot
			c.placer.died(name, boot)
			if !lost {
				return nil, nil
			}
			return v.HostLost(name, boot, c.placer.now().UnixNano())
		})
		switch {
		case err != nil:
			// Its silence tells, a little later.
			n.log.Debug("a host whose process has ended was not declared lost", "host", name, "error", err)
		case lost:
			c.placer.count("lost")
			c.placer.event(severityError, "host-lost", "host %q counts as lost, in its life %d: its process has ended", name, boot)
		}
	})
}
