package quorum

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"

	"steadfast/fault"
)

// Kind is what a command does; see the package doc.
type Kind string

// Kinds of commands.
const (
	KindBoot    Kind = "boot"
	KindCreate  Kind = "create"
	KindRemove  Kind = "remove"
	KindAdmit   Kind = "admit"
	KindSucceed Kind = "succeed"
	KindHand    Kind = "hand"
	KindYield   Kind = "yield"
	KindSettle  Kind = "settle"
	KindRevive  Kind = "revive"
	KindPromote Kind = "promote"
	KindDelete  Kind = "delete"
	KindAssign  Kind = "assign"

	KindEdit Kind = "edit"

	KindInvite   Kind = "invite"
	KindWithdraw Kind = "withdraw"
	KindJoin     Kind = "join"
	KindVote     Kind = "vote"
	KindLeave    Kind = "leave"
	KindMove     Kind = "move"
)

// Command is one proposed change. All but boot and create name the revision, of
// the group, of the membership or of the inventory, that they are meant for.
type Command struct {
	Kind     Kind        `json:"kind"`
	Group    string      `json:"group,omitempty"`
	Revision Revision    `json:"rev,omitempty"`
	By       Incarnation `json:"by"`
	Who      Incarnation `json:"who,omitzero"` // whom remove, admit, hand and yield are about
	// Members are those that a group may live on, ascending: of create, where
	// none means that anyone will do, and of assign.
	Members []Member `json:"members,omitempty"`
	// Edits are those of the inventory.
	Edits []Edit `json:"edits,omitempty"`
	// Change is what invite to move are about; nil for all others.
	Change *Change `json:"change,omitempty"`
}

// Equal tells whether c and o say the same.
func (c Command) Equal(o Command) bool {
	sameEdit := func(a, b Edit) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }
	return c.Kind == o.Kind && c.Group == o.Group && c.Revision == o.Revision && c.By == o.By && c.Who == o.Who &&
		slices.Equal(c.Members, o.Members) && slices.EqualFunc(c.Edits, o.Edits, sameEdit) &&
		(c.Change == o.Change || c.Change != nil && o.Change != nil && *c.Change == *o.Change)
}

// Encode returns c as an entry of the log holds it.
func (c Command) Encode() ([]byte, error) { return json.Marshal(c) }

// DecodeCommand reverses Encode.
func DecodeCommand(p []byte) (c Command, err error) {
	if err := json.Unmarshal(p, &c); err != nil {
		return Command{}, fault.Wrap(fault.Corrupt, err, "an entry of the quorum's log")
	}
	return c, nil
}

// Apply makes a change, or refuses it: fault.Stale when the record or its
// author is another by now, fault.NotFound and fault.Exists for groups,
// fault.Denied for who is not entitled, fault.Invalid for what has no meaning and
// fault.Limit for what is too much. A refused command changes nothing but the
// index.
func (s *State) Apply(index uint64, c Command) error {
	s.Index = index
	switch {
	case c.Kind == KindBoot:
		return s.boot(c.By)
	case s.Boots[c.By.Member] != c.By.Boot:
		return fault.New(fault.Stale, "%s of %s life %d, which is at %d", c.Kind, c.By.Member, c.By.Boot, s.Boots[c.By.Member])
	case !s.speaks(c.By.Member):
		return fault.New(fault.Denied, "%s of %s, which is not a member", c.Kind, c.By.Member)
	case c.Kind.OfRoll():
		return s.enrol(c)
	case c.Kind == KindEdit:
		return s.edit(c)
	case c.Kind == KindCreate:
		return s.create(c)
	}
	g := s.Group[c.Group]
	if g == nil {
		return fault.New(fault.NotFound, "there is no group %q", c.Group)
	}
	if c.Revision != g.Revision {
		return fault.New(fault.Stale, "%s for revision %d of group %q, which is at %d", c.Kind, c.Revision, c.Group, g.Revision)
	}
	if c.Kind == KindDelete {
		if c.By != g.Owner {
			return denied(c)
		}
		delete(s.Group, c.Group)
		return nil
	}
	next := g.clone()
	if err := s.change(next, c); err != nil {
		return err
	}
	next.Revision++
	s.Group[c.Group] = next
	return nil
}

func (s *State) boot(i Incarnation) error {
	if i.Member == "" || i.Boot <= s.Boots[i.Member] {
		return fault.New(fault.Stale, "%s has begun life %d already", i.Member, s.Boots[i.Member])
	}
	if !s.speaks(i.Member) {
		return fault.New(fault.Denied, "%s is not a member and begins no life", i.Member)
	}
	s.Boots[i.Member] = i.Boot
	return nil
}

func (s *State) create(c Command) error {
	g := &Group{Name: c.Group, Revision: 1, Epoch: 1, Owner: c.By, Set: []Incarnation{c.By}, Members: append([]Member(nil), c.Members...)}
	if !s.holds(c.By.Member) || !g.Allows(c.By.Member) {
		return denied(c)
	}
	if s.Group[c.Group] != nil {
		return fault.New(fault.Exists, "there is a group %q already", c.Group)
	}
	if err := s.checkMembers(c); err != nil {
		return err
	}
	s.Group[c.Group] = g
	return nil
}

// assign replaces the members that g may live on.
func (s *State) assign(g *Group, c Command) error {
	if c.By != g.Owner {
		return denied(c)
	}
	if err := s.checkMembers(c); err != nil {
		return err
	}
	for _, i := range g.Set {
		if !slices.Contains(c.Members, i.Member) {
			return fault.New(fault.Denied, "member %s is in the set of group %q: remove it from there first", i.Member, g.Name)
		}
	}
	g.Members = append([]Member(nil), c.Members...)
	return nil
}

// checkMembers holds the list that a command gives a group.
func (s *State) checkMembers(c Command) error {
	if err := validMembers(c.Members); err != nil {
		return err
	}
	for _, m := range c.Members {
		if !s.speaks(m) {
			return fault.New(fault.NotFound, "there is no member %s", m)
		}
		if !s.holds(m) {
			return fault.New(fault.Denied, "member %s stores nothing: no group lives on it", m)
		}
	}
	return nil
}

// validMembers tells what is wrong with the form of a group's list.
func validMembers(list []Member) error {
	if len(list) > GroupMembersMax {
		return fault.New(fault.Limit, "%d members of a group, the bound is %d", len(list), GroupMembersMax)
	}
	for i, m := range list {
		if !m.Valid() || i > 0 && m <= list[i-1] {
			return fault.New(fault.Invalid, "the members of a group are names, ascending, each once: not %q", list)
		}
	}
	return nil
}

// change does what the owner, an entry or a returning member is entitled to.
func (s *State) change(g *Group, c Command) error {
	switch c.Kind {
	case KindRemove:
		if c.By != g.Owner && c.By != c.Who || c.Who == g.Owner || !g.Has(c.Who) {
			return denied(c)
		}
		g.Set = slices.DeleteFunc(g.Set, func(i Incarnation) bool { return i == c.Who })
	case KindAdmit:
		_, there := g.Entry(c.Who.Member)
		if c.By != g.Owner || there || s.Boots[c.Who.Member] != c.Who.Boot || !s.holds(c.Who.Member) || !g.Allows(c.Who.Member) {
			return denied(c)
		}
		g.Set = append(g.Set, c.Who)
		slices.SortFunc(g.Set, func(a, b Incarnation) int { return cmp.Compare(a.Member, b.Member) })
	case KindSucceed:
		if c.By == g.Owner || !g.Has(c.By) {
			return denied(c)
		}
		g.own(c.By)
	case KindHand, KindYield:
		if c.By != g.Owner || c.Who == g.Owner || !g.Has(c.Who) {
			return denied(c)
		}
		if c.Kind == KindYield {
			g.own(c.Who)
			break
		}
		g.Owner = c.Who
		g.Epoch++
	case KindSettle:
		if c.By != g.Owner {
			return denied(c)
		}
	case KindRevive:
		if e, ok := g.Entry(c.By.Member); !ok || e == c.By || !g.Allows(c.By.Member) {
			return denied(c)
		}
		g.own(c.By)
		g.Revived++
	case KindPromote:
		if g.Has(c.By) || !s.holds(c.By.Member) || !g.Allows(c.By.Member) {
			return denied(c)
		}
		g.own(c.By)
		g.Promoted++
	case KindAssign:
		return s.assign(g, c)
	default: // boot, edit, create and delete were done; a newer version's command is not for us
		return fault.New(fault.Invalid, "a command of unknown kind %q", c.Kind)
	}
	return nil
}

// own makes i the owner and the only entry, in a new epoch.
func (g *Group) own(i Incarnation) {
	g.Owner, g.Set = i, []Incarnation{i}
	g.Epoch++
}

func denied(c Command) error {
	return fault.New(fault.Denied, "%s life %d may not %s in group %q at revision %d", c.By.Member, c.By.Boot, c.Kind, c.Group, c.Revision)
}
