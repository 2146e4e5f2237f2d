package ha

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/statevol"
	"steadfast/san/store"
)

// Prefixes of the inventory's keys.
const (
	groupPrefix   = "group/"
	drainedPrefix = "drained/"
	// numberKey counts the groups that were ever made: numbers are not given
	// twice, for initiators remember them.
	numberKey = "count/group"
	// goneKey lists the groups that were deleted.
	goneKey = "gone/groups"
)

// GroupsMax bounds the groups of a cluster, those deleted included: the portal
// group tag is made of the group's number.
const GroupsMax = 0xe000

// VolumesMax bounds the volumes of a group.
const VolumesMax = statevol.Units

// tagBase is what a group's number is added to for its portal group tag; a
// node's own portals are below. RFC 7143, 13.9.
const tagBase = 0x1000

// Spec is what a resource group is to be: the inventory holds it, and each node
// brings about its part.
type Spec struct {
	Name      string        `json:"name"`
	Number    uint16        `json:"number"`
	Target    string        `json:"target"`
	Nodes     []Node        `json:"nodes"`
	Aliases   []Alias       `json:"aliases"`
	Preferred quorum.Member `json:"preferred"`
	Failback  bool          `json:"failback,omitempty"` // automatic
	Delay     int64         `json:"delay,omitempty"`    // of a failback, in seconds
	Multipath bool          `json:"multipath,omitempty"`
	Confirm   bool          `json:"confirm,omitempty"` // see group.Config: the same on both nodes
	Volumes   []Volume      `json:"volumes,omitempty"`
	Last      uint32        `json:"last"` // newest number given to a volume
	StateID   string        `json:"state_id"`
}

// Node is one of a group's nodes.
type Node struct {
	Name quorum.Member `json:"name"`
	Pool string        `json:"pool"`
	// PoolID is the pool's identifier, hex, once the node has told it: another
	// pool of that name holds nothing of the group.
	PoolID string `json:"pool_id,omitempty"`
}

// Alias is an address that clients reach the group at.
type Alias struct {
	Address   netip.Prefix `json:"address"`
	Interface string       `json:"interface,omitempty"`
}

// Volume is a volume that the group mirrors.
type Volume struct {
	Number     uint32 `json:"number"`
	ID         string `json:"id"` // hex
	Name       string `json:"name"`
	Size       int64  `json:"size"` // bytes
	WriteCache bool   `json:"write_cache,omitempty"`
	ReadOnly   bool   `json:"read_only,omitempty"`
	// Place is where the state volume has the unit's state: from 1 on, and given
	// again when the volume is deleted.
	Place uint32 `json:"place"`
}

// Tag is the group's portal group tag, target port group and relative port.
func (s *Spec) Tag() uint16 { return tagBase + s.Number }

// Node returns the group's record of a node.
func (s *Spec) Node(name quorum.Member) (Node, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Other returns the name of the node that is not this one; empty when there is
// none.
func (s *Spec) Other(name quorum.Member) quorum.Member {
	for _, n := range s.Nodes {
		if n.Name != name {
			return n.Name
		}
	}
	return ""
}

// Volume returns a volume by its name.
func (s *Spec) Volume(name string) (Volume, bool) {
	i := slices.IndexFunc(s.Volumes, func(v Volume) bool { return v.Name == name })
	if i < 0 {
		return Volume{}, false
	}
	return s.Volumes[i], true
}

// Members returns the nodes' names, ascending.
func (s *Spec) Members() []quorum.Member {
	var out []quorum.Member
	for _, n := range s.Nodes {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return out
}

// FailbackAfter is how long a preferred node is in sync before it gets the group
// back; negative: only by an administrator.
func (s *Spec) FailbackAfter() time.Duration {
	if !s.Failback {
		return -1
	}
	return time.Duration(s.Delay) * time.Second
}

// Clone returns a copy that shares nothing with s.
func (s *Spec) Clone() *Spec {
	c := *s
	c.Nodes, c.Aliases, c.Volumes = slices.Clone(s.Nodes), slices.Clone(s.Aliases), slices.Clone(s.Volumes)
	return &c
}

// stateName is the name of the group's state volume in a pool.
func (s *Spec) stateName() string { return StateVolume(s.Name) }

// StateVolume is the name of a group's state volume. Nobody else may have it.
func StateVolume(group string) string { return "state." + group }

// edit returns the spec as a change of the inventory.
func (s *Spec) edit() (quorum.Edit, error) {
	b, err := json.Marshal(s)
	return quorum.Edit{Key: groupPrefix + s.Name, Value: b}, fault.Wrap(fault.Internal, err, "a group's record")
}

// Specs reads the groups of an inventory, by name. Records that cannot be read
// are left out, and named in the error.
func Specs(inv map[string][]byte) (list []*Spec, err error) {
	var broken []string
	for key, value := range inv {
		if !strings.HasPrefix(key, groupPrefix) {
			continue
		}
		s := &Spec{}
		if err := json.Unmarshal(value, s); err != nil {
			broken = append(broken, key)
			continue
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *Spec) int { return strings.Compare(a.Name, b.Name) })
	if len(broken) > 0 {
		slices.Sort(broken)
		err = fault.New(fault.Stale, "the inventory's %v cannot be read: a newer program wrote them", broken)
	}
	return list, err
}

// Drained tells whether a node takes no groups.
func Drained(inv map[string][]byte, name quorum.Member) bool {
	_, ok := inv[drainedPrefix+string(name)]
	return ok
}

// parseID reads an identifier in hex.
func parseID(text string) (id store.ID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fault.New(fault.Corrupt, "%q is no identifier", text)
	}
	return store.ID(b), nil
}

func hexID(id store.ID) string { return fmt.Sprintf("%x", id[:]) }
