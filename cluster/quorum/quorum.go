// Package quorum holds what the cluster has decided: who the members are, for
// each resource group who may act, and what the cluster shall have. It is the
// state that raft replicates: pure, the same on every member at the same index.
//
// # The rules
//
// A group has an epoch, an owner, and a set of entries in sync. An entry is an
// incarnation: a member in one of its lives. Two facts hold for ever:
//
//  1. The owner has acknowledged nothing under this epoch that an entry of the
//     set lacks; so any entry may succeed it. (The owner's part: it waits for
//     every entry, and believes an entry gone only when it has applied that.)
//  2. Every change is made by someone entitled to it, to the record as it was
//     when they looked: each command names the revision it is meant for, and
//     the first one that is applied makes the others void.
//
// Who is entitled to what:
//
//	Create    anyone who may hold it: a new group, one entry, which owns it
//	Remove    the owner: takes another entry out of the set. Or that entry itself
//	Admit     the owner: adds a member that has everything
//	Succeed   another entry of the set: becomes owner, alone, in a new epoch.
//	          What it waited for before is its own affair; see cluster/group
//	Hand      the owner: makes another entry the owner, in a new epoch; the set
//	          stays as it is. The owner has nothing under way then
//	Yield     the owner, when it cannot go on: makes another entry the owner,
//	          alone, in a new epoch
//	Settle    the owner: changes nothing, but makes void what was proposed before
//	Revive    a member whose former life is in the set, when no entry is alive:
//	          becomes owner, alone, in a new epoch
//	Promote   an administrator, for a member that is in no set: data may be lost
//	Assign    the owner: another list of members that the group may live on,
//	          among them all of the set
//	Delete    the owner
//
// A group lives on the members that it lists: nobody else creates it, is
// admitted, revives it or is promoted. A list is made of storage nodes that are
// members then. Who leaves the cluster stays on it: a machine that comes in its
// place, under its name, takes over its part. A group that lists nobody may live
// on any.
//
// A member's lives are numbered by itself and only go up. A command of a former
// life is refused: what it proposed before it died may be applied long after.
//
// # The members
//
// Who may speak at all is decided in the same way. The membership has a revision
// of its own, which each of these names; any member may propose them:
//
//	Invite    makes a token for one joiner of a role, good until a time
//	Withdraw  takes a token back
//	Join      a new member, by a token, which is gone then. It gets a number,
//	          given once and never again, and does not vote yet
//	Vote      a member that has caught up becomes a voter; not a host
//	Leave     takes a member out; not one that is in a group's set, where data
//	          could be on it alone, and not the last voter
//	Move      changes a member's address
//
// Join, Vote and Leave are raft's changes of configuration too; they are one
// entry of the log with it, so that neither is ever without the other. A state
// that has no members at all does not ask who is one: it is for trying the
// rules of groups alone. A witness holds no data and so is in no set; nor does a host,
// which follows what is decided, may propose, and never votes: machines come and go on
// as many hosts as there are, and what is decided stays with the three.
//
// # The inventory
//
// What the cluster shall have (its groups, their volumes, addresses, who may see
// what) is documents by key, of which this package knows no more than their size.
// An Edit sets and deletes some, all or none, and names the revision of the
// inventory that its author looked at: of two that looked at the same one, the
// second is refused, and looks again. Any member may propose it.
//
// Times of tokens are seconds that the proposer read from its clock: an expiry
// is for the one who loses a token, not for the order of events.
package quorum

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"steadfast/fault"
)

// Member names a node or the witness. It never changes for the member's whole
// membership, while addresses may.
type Member string

// Boot numbers the lives of a member, from 1. Each start is a new life.
type Boot uint64

// Incarnation is a member in one of its lives.
type Incarnation struct {
	Member Member `json:"m"`
	Boot   Boot   `json:"b"`
}

// Epoch numbers the owners of a group, from 1.
type Epoch uint64

// Revision numbers the changes of one group's record, from 1.
type Revision uint64

// Group is what is decided of one resource group.
type Group struct {
	Name     string        `json:"name"`
	Revision Revision      `json:"rev"`
	Epoch    Epoch         `json:"epoch"`
	Owner    Incarnation   `json:"owner"`
	Set      []Incarnation `json:"set"` // ascending by member; the owner is in it
	// Members are those that the group may live on, ascending; none means any.
	Members []Member `json:"members,omitempty"`
	// Revived counts how often the group went on although every entry had
	// died, and Promoted how often an administrator had it go on without one.
	Revived  uint64 `json:"revived,omitempty"`
	Promoted uint64 `json:"promoted,omitempty"`
}

// GroupMembersMax bounds the members that a group lists.
const GroupMembersMax = 8

// Allows tells whether the group may live on m.
func (g *Group) Allows(m Member) bool { return len(g.Members) == 0 || slices.Contains(g.Members, m) }

// Has tells whether i is in the set.
func (g *Group) Has(i Incarnation) bool { return slices.Contains(g.Set, i) }

// Entry returns the incarnation of m that is in the set.
func (g *Group) Entry(m Member) (i Incarnation, ok bool) {
	k := slices.IndexFunc(g.Set, func(e Incarnation) bool { return e.Member == m })
	if k < 0 {
		return i, false
	}
	return g.Set[k], true
}

// placed tells whether the set is among the members that the group lists.
func (g *Group) placed() bool {
	return validMembers(g.Members) == nil && !slices.ContainsFunc(g.Set, func(i Incarnation) bool { return !g.Allows(i.Member) })
}

func (g *Group) clone() *Group {
	c := *g
	c.Set = slices.Clone(g.Set)
	return &c
}

// State is everything decided up to Index.
type State struct {
	Index uint64            `json:"index"` // of the log
	Boots map[Member]Boot   `json:"boots"` // newest life of each member, of those that left too
	Group map[string]*Group `json:"groups"`
	Roll  Roll              `json:"roll"`

	Inventory Inventory `json:"inventory"`
}

// NewState returns what is decided before anything is.
func NewState() *State {
	return &State{Boots: map[Member]Boot{}, Group: map[string]*Group{}, Roll: newRoll(), Inventory: newInventory()}
}

// Clone returns a copy that commands can be applied to while others read s. It is
// made for each entry of the log: the groups' records, the members' and the
// inventory are shared, for a command replaces them and changes none in place.
func (s *State) Clone() *State {
	return &State{Index: s.Index, Boots: maps.Clone(s.Boots), Group: maps.Clone(s.Group), Roll: s.Roll.clone(), Inventory: s.Inventory}
}

// Encode returns s as a snapshot of the log holds it.
func (s *State) Encode() ([]byte, error) { return json.Marshal(s) }

// DecodeState reverses Encode.
func DecodeState(p []byte) (*State, error) {
	s := NewState()
	if err := json.Unmarshal(p, s); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the quorum's snapshot")
	}
	if s.Boots == nil || s.Group == nil {
		return nil, fault.New(fault.Corrupt, "the quorum's snapshot lacks its members or its groups")
	}
	for name, g := range s.Group {
		if g == nil || g.Name != name || !g.Has(g.Owner) {
			return nil, fault.New(fault.Corrupt, "the quorum's snapshot contradicts itself: group %q", name)
		}
		if !g.placed() {
			return nil, fault.New(fault.Corrupt, "the quorum's snapshot contradicts itself: group %q lives where it may not", name)
		}
	}
	if err := errors.Join(s.Roll.check(), s.Inventory.check()); err != nil {
		return nil, err
	}
	return s, nil
}

// Dead tells whether i is known to be over: its member has a later life.
func (s *State) Dead(i Incarnation) bool { return s.Boots[i.Member] > i.Boot }
