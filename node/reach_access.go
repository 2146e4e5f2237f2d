package node

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"steadfast/cluster/identity"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/control"
	"steadfast/node/ha"
)

// accessPurpose names the key that members' secrets are made of.
const accessPurpose = "steadfast host access 1"

// membersAccess is a storage node's knowledge of what members see, and what they must
// prove. Under Node.admin.
type membersAccess struct {
	now *reach
	// What now was derived from.
	entries   map[string][]byte
	inventory quorum.Revision
	roll      quorum.Revision
	// behind are targets that could not follow what changed.
	behind map[string]bool
}

// secretOf returns what a member proves itself with to groups' targets: every storage node
// makes it of the cluster's key and of who the member is, so it is kept nowhere.
// Fails with fault.Denied on who has no such key.
func (c *cluster) secretOf(m *quorum.Record) (string, error) {
	return accessSecret(c.id, identityOf(m))
}

func accessSecret(signer *identity.Identity, member string) (string, error) {
	key, err := signer.DerivedKey(accessPurpose)
	if err != nil {
		return "", err
	}
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(member)) // it never fails
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)), nil
}

// AccessOf is what the storage node of a data directory proves to groups' targets: a demonstration
// on one computer reads volumes beside it. Fails with fault.NotFound where no member of a cluster
// is, and with fault.Denied on who has no such key.
func AccessOf(dataDir string) (*iscsi.Credentials, error) {
	id, err := identity.Load(filepath.Join(dataDir, "cluster"))
	if err != nil {
		return nil, err
	}
	me := id.Self()
	secret, err := accessSecret(id, identityOf(&quorum.Record{Name: me.Name, ID: me.ID, Key: me.Key}))
	if err != nil {
		return nil, err
	}
	return &iscsi.Credentials{Name: memberPrefix(id.Cluster()) + string(me.Name), Secret: []byte(secret)}, nil
}

// memberAuth is what a member must prove: its name and its secret, by CHAP one way. The
// network of the SAN is trusted as it is with other initiators: iSCSI proves nothing of the data.
func (c *cluster) memberAuth(initiator string, m *quorum.Record) (iscsi.Auth, error) {
	secret, err := c.secretOf(m)
	if err != nil {
		return iscsi.Auth{}, err
	}
	auth := iscsi.Auth{In: &iscsi.Credentials{Name: initiator, Secret: []byte(secret)}}
	return auth, auth.Check()
}

// follow takes in what members see by the quorum's present state, and returns the targets
// that are to follow, and initiators that are another member's by now.
func (a *membersAccess) follow(prefix string, state *quorum.State) (targets, replaced []string) {
	if a.now != nil && a.inventory == state.Inventory.Revision && a.roll == state.Roll.Revision {
		return nil, nil
	}
	// Machines are placed all the time: most changes are of that, and none of ours.
	same := a.now != nil && a.roll == state.Roll.Revision && sameReach(a.entries, state.Inventory.Entries)
	a.entries, a.inventory, a.roll = state.Inventory.Entries, state.Inventory.Revision, state.Roll.Revision
	if same {
		return nil, nil
	}
	before := a.now
	// What cannot be read is told where it is needed.
	specs, _ := ha.Specs(a.entries)
	view, _ := inventory.Read(a.entries)
	a.now = deriveReach(prefix, specs, view, state.Roll, before)
	return a.now.changed(before)
}

// reachPrefixes begin the keys of what deriveReach reads.
var reachPrefixes = []string{"group/", "host/", "datastore/", "machine/"}

// sameReach tells whether two states of the inventory have the same documents of those that
// deriveReach reads.
func sameReach(a, b map[string][]byte) bool {
	count := func(m map[string][]byte) (n int) {
		for key := range m {
			if ofReach(key) {
				n++
			}
		}
		return n
	}
	for key, value := range a {
		if ofReach(key) && !bytes.Equal(value, b[key]) {
			return false
		}
	}
	return count(a) == count(b)
}

func ofReach(key string) bool {
	return slices.ContainsFunc(reachPrefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// viewOf returns what each initiator sees through a target: by mappings, and as a
// member of the cluster. Under admin, or at the start.
func (n *Node) viewOf(target string) map[string][]control.Mapping {
	view := n.state.View(target)
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c == nil {
		return view
	}
	maps.DeleteFunc(view, func(initiator string, _ []control.Mapping) bool {
		// An older program's: it is a member's name since the node is in a cluster.
		return strings.HasPrefix(initiator, memberPrefix(c.id.Cluster()))
	})
	maps.Copy(view, c.access.now.view(target))
	return view
}

// memberAuthOf returns what an initiator must prove that is a member of the cluster; is: it
// is one. Under admin.
func (n *Node) memberAuthOf(initiator string) (auth iscsi.Auth, is bool, err error) {
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c == nil || c.access.now == nil || c.access.now.known[initiator] == nil {
		return auth, false, nil
	}
	auth, err = c.memberAuth(initiator, c.access.now.known[initiator])
	return auth, true, err
}

// notOfMembers refuses to enter, change or map to an initiator whose name is for members.
// Fails with fault.Denied.
func (n *Node) notOfMembers(initiator string) error {
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c == nil || !strings.HasPrefix(normal(initiator), memberPrefix(c.id.Cluster())) {
		return nil
	}
	return fault.New(fault.Denied, "%s is a member of the cluster, whose access follows from the machines and datastores there are; name an initiator of your own", initiator)
}

// adoptShared takes in shared records that others have changed, and what members see
// by now, and has targets follow. Under admin.
func (n *Node) adoptShared() {
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c == nil || !n.cfg.Cluster.Stores() {
		return
	}
	moved, replaced := c.access.follow(memberPrefix(c.id.Cluster()), c.member.State())
	for _, target := range moved {
		c.access.enterBehind(target)
	}
	if c.shares.moved() {
		before := c.shares.held()
		entries := c.shares.Entries()
		if !control.SameShared(before, entries) || c.shares.torn {
			err := n.state.Adopt(entries)
			if c.shares.torn = err != nil; err != nil {
				n.log.Error("the cluster's records cannot be read", "error", err)
			} else {
				n.forgetAuths()
				for _, name := range n.targets.Targets() {
					c.access.enterBehind(name)
				}
			}
		}
	}
	n.catchUp(c, replaced)
}

func (a *membersAccess) enterBehind(target string) {
	if a.behind == nil {
		a.behind = map[string]bool{}
	}
	a.behind[target] = true
}

// catchUp has the targets follow that are behind. Sessions of replaced initiators end first:
// whoever they are of is a member no more. Under admin.
func (n *Node) catchUp(c *cluster, replaced []string) {
	if len(c.access.behind) == 0 {
		return
	}
	offered := n.targets.Targets()
	for _, name := range slices.Sorted(maps.Keys(c.access.behind)) {
		var err error
		if slices.Contains(offered, name) { // the others follow when they are
			err = n.syncTarget(name, replaced...)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			n.log.Error("a target cannot follow the cluster's records", "target", name, "error", err)
			continue // until the next change
		}
		delete(c.access.behind, name)
	}
}
