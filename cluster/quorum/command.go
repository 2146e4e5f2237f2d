package quorum

import (
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

	KindInvite   Kind = "invite"
	KindWithdraw Kind = "withdraw"
	KindJoin     Kind = "join"
	KindVote     Kind = "vote"
	KindLeave    Kind = "leave"
	KindMove     Kind = "move"
)

// Command is one proposed change. All but boot and create name the revision, of
// the group or of the membership, that they are meant for.
type Command struct {
	Kind     Kind        `json:"kind"`
	Group    string      `json:"group,omitempty"`
	Revision Revision    `json:"rev,omitempty"`
	By       Incarnation `json:"by"`
	Who      Incarnation `json:"who,omitzero"` // whom remove, admit, hand and yield are about
	// Change is what invite to move are about; nil for all others.
	Change *Change `json:"change,omitempty"`
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
// fault.Denied for who is not entitled. A refused command changes nothing but
// the index.
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
	if !s.holds(c.By.Member) {
		return denied(c)
	}
	if s.Group[c.Group] != nil {
		return fault.New(fault.Exists, "there is a group %q already", c.Group)
	}
	s.Group[c.Group] = &Group{Name: c.Group, Revision: 1, Epoch: 1, Owner: c.By, Set: []Incarnation{c.By}}
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
		if c.By != g.Owner || there || s.Boots[c.Who.Member] != c.Who.Boot || !s.holds(c.Who.Member) {
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
		if e, ok := g.Entry(c.By.Member); !ok || e == c.By {
			return denied(c)
		}
		g.own(c.By)
		g.Revived++
	case KindPromote:
		if g.Has(c.By) || !s.holds(c.By.Member) {
			return denied(c)
		}
		g.own(c.By)
		g.Promoted++
	default: // boot, create and delete were done; a newer version's command is not for us
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
