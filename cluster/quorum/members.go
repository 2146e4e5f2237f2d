package quorum

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"steadfast/fault"
)

// Role is what a member is there for.
type Role string

// Roles.
const (
	RoleNode    Role = "node"    // holds data, and the cluster's signing key
	RoleWitness Role = "witness" // only votes
	RoleHost    Role = "host"    // runs machines; it neither votes nor holds data, and follows what is decided
)

// Fingerprint is the SHA-256 of a public key in its PKIX form, or of a token's
// secret: 64 lower-case hexadecimal digits.
type Fingerprint string

// Bounds of the membership: a record is copied with each change, and no
// administrator wants more.
const (
	MembersMax = 64
	TokensMax  = 64
)

// Record is what is known of a member.
type Record struct {
	Name    Member      `json:"name"`
	ID      uint64      `json:"id"` // raft's; given once, never reused
	Role    Role        `json:"role"`
	Address string      `json:"address"` // host:port
	Key     Fingerprint `json:"key"`     // of its certificate's public key
	Voter   bool        `json:"voter,omitempty"`
	// Token is what it joined by, so that a joiner that missed its answer can
	// ask again. The first member has none.
	Token Fingerprint `json:"token,omitempty"`
	// Floor is the newest life of that name when it joined; its own are later.
	Floor Boot `json:"floor,omitempty"`
}

// Token entitles one joiner. The secret itself is with whoever was given it.
type Token struct {
	Hash    Fingerprint `json:"hash"`
	Role    Role        `json:"role"`
	Expires int64       `json:"expires"` // seconds of Unix time, the first that is too late
}

// Roll is the membership. The zero Revision is before anyone was a member.
type Roll struct {
	Revision Revision               `json:"rev"`
	LastID   uint64                 `json:"last"` // newest number that was given out
	Members  map[Member]*Record     `json:"members"`
	Tokens   map[Fingerprint]*Token `json:"tokens"`
	// Recovered counts how often an administrator had one member go on without
	// the quorum.
	Recovered uint64 `json:"recovered,omitempty"`
}

// Change is what a command of the membership brings.
type Change struct {
	Name    Member      `json:"name,omitempty"`    // join, vote, leave, move
	ID      uint64      `json:"id,omitempty"`      // join, vote, leave: the member's number
	Address string      `json:"address,omitempty"` // join, move
	Key     Fingerprint `json:"key,omitempty"`     // join
	Token   Fingerprint `json:"token,omitempty"`   // invite, withdraw, join
	Role    Role        `json:"role,omitempty"`    // invite; join, when it says which it takes itself for
	Expires int64       `json:"expires,omitempty"` // invite
	Now     int64       `json:"now,omitempty"`     // invite, join: the proposer's time
}

// OfRoll tells whether k changes the membership.
func (k Kind) OfRoll() bool {
	switch k {
	case KindInvite, KindWithdraw, KindJoin, KindVote, KindLeave, KindMove:
		return true
	default:
		return false
	}
}

// OfRaft tells whether k changes raft's configuration as well.
func (k Kind) OfRaft() bool { return k == KindJoin || k == KindVote || k == KindLeave }

func newRoll() Roll {
	return Roll{Members: map[Member]*Record{}, Tokens: map[Fingerprint]*Token{}}
}

// clone copies r. Records and tokens are replaced, never changed: they are
// shared.
func (r Roll) clone() Roll {
	r.Members, r.Tokens = maps.Clone(r.Members), maps.Clone(r.Tokens)
	return r
}

// Sorted returns the records, ascending by number.
func (r Roll) Sorted() []*Record {
	return slices.SortedFunc(maps.Values(r.Members), func(a, b *Record) int { return cmp.Compare(a.ID, b.ID) })
}

// ByID returns the member of that number, or nil.
func (r Roll) ByID(id uint64) *Record {
	for _, m := range r.Members {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// Found returns the state of a cluster that has one member, which votes.
// Fails with fault.Invalid.
func Found(first Record) (*State, error) {
	s := NewState()
	if first.Role == RoleHost {
		return nil, fault.New(fault.Invalid, "a host has no vote, and cannot be a cluster's first member")
	}
	first.ID, first.Voter, first.Token = 1, true, ""
	if err := first.check(); err != nil {
		return nil, err
	}
	s.Roll.Revision, s.Roll.LastID = 1, first.ID
	s.Roll.Members[first.Name] = &first
	return s, nil
}

// Recover makes m the only member, by an administrator's word that the others
// are lost. The groups stay as they are: who is in their sets is for Revive and
// Promote. The others' numbers are never given again, so that what they still
// say is refused; open tokens are void.
func (s *State) Recover(m Member) error {
	r := s.Roll.Members[m]
	if r == nil {
		return fault.New(fault.NotFound, "%s is not a member of the cluster", m)
	}
	if r.Role == RoleHost {
		return fault.New(fault.Invalid, "%s is a host, which has no vote: recover the cluster on a storage node", m)
	}
	for name := range s.Roll.Members {
		if name != m {
			s.Boots[name]++
		}
	}
	only := *r
	only.Voter = true
	s.Roll.Members = map[Member]*Record{m: &only}
	s.Roll.Tokens = map[Fingerprint]*Token{}
	s.Roll.Revision++
	s.Roll.Recovered++
	return nil
}

// speaks tells whether commands of m are heard.
func (s *State) speaks(m Member) bool { return len(s.Roll.Members) == 0 || s.Roll.Members[m] != nil }

// holds tells whether m may be in a group's set.
func (s *State) holds(m Member) bool {
	r := s.Roll.Members[m]
	return len(s.Roll.Members) == 0 || r != nil && r.Role == RoleNode
}

// enrol does a command of the membership.
func (s *State) enrol(c Command) error {
	switch {
	case len(s.Roll.Members) == 0:
		return fault.New(fault.Denied, "%s where nobody is a member: found a cluster first", c.Kind)
	case c.Change == nil:
		return fault.New(fault.Invalid, "%s of %s says nothing", c.Kind, c.By.Member)
	case c.Revision != s.Roll.Revision:
		return fault.New(fault.Stale, "%s for revision %d of the membership, which is at %d", c.Kind, c.Revision, s.Roll.Revision)
	}
	var err error
	switch c.Kind {
	case KindInvite:
		err = s.invite(*c.Change)
	case KindWithdraw:
		if s.Roll.Tokens[c.Change.Token] == nil {
			return fault.New(fault.NotFound, "there is no such token: it was used, withdrawn, or is too old")
		}
		delete(s.Roll.Tokens, c.Change.Token)
	case KindJoin:
		err = s.join(*c.Change)
	case KindVote, KindMove:
		err = s.amend(c.Kind, *c.Change)
	case KindLeave:
		err = s.leave(*c.Change)
	default:
		err = fault.New(fault.Invalid, "%s is not about the membership", c.Kind)
	}
	if err == nil {
		s.Roll.Revision++
	}
	return err
}

// invite makes a token, and clears away those that are too old to be used.
func (s *State) invite(c Change) error {
	switch {
	case !c.Token.valid():
		return fault.New(fault.Invalid, "the token's hash is not one")
	case !c.Role.valid():
		return fault.New(fault.Invalid, "%q is not a role: node, witness or host", c.Role)
	case c.Expires <= c.Now:
		return fault.New(fault.Invalid, "the token would have expired before it is made")
	case s.Roll.Tokens[c.Token] != nil || s.Roll.byToken(c.Token) != nil:
		return fault.New(fault.Exists, "that token was made before")
	}
	live := 0
	for _, t := range s.Roll.Tokens {
		if t.Expires > c.Now {
			live++
		}
	}
	if live >= TokensMax {
		return fault.New(fault.Limit, "%d tokens are outstanding: withdraw some", live)
	}
	maps.DeleteFunc(s.Roll.Tokens, func(_ Fingerprint, t *Token) bool { return t.Expires <= c.Now })
	s.Roll.Tokens[c.Token] = &Token{Hash: c.Token, Role: c.Role, Expires: c.Expires}
	return nil
}

func (s *State) join(c Change) error {
	t := s.Roll.Tokens[c.Token]
	if t == nil || t.Expires <= c.Now {
		return fault.New(fault.Denied, "no such token is outstanding: it was used, withdrawn, or is too old; make a new one")
	}
	// The proposer has put the number into raft's half of the entry.
	if c.ID != s.Roll.LastID+1 {
		return fault.New(fault.Stale, "member %s would get number %d, the next is %d", c.Name, c.ID, s.Roll.LastID+1)
	}
	if c.Role != "" && c.Role != t.Role {
		return fault.New(fault.Invalid, "the token is for a %s, and the joiner is a %s; make one with --role %s", t.Role, c.Role, c.Role)
	}
	r := &Record{Name: c.Name, ID: c.ID, Role: t.Role, Address: c.Address, Key: c.Key, Token: c.Token, Floor: s.Boots[c.Name]}
	if err := r.check(); err != nil {
		return err
	}
	if s.Roll.Members[c.Name] != nil {
		return fault.New(fault.Exists, "there is a member %s already", c.Name)
	}
	for _, m := range s.Roll.Members {
		if m.Key == r.Key || m.Address == r.Address {
			return fault.New(fault.Exists, "member %s has the key or the address of %s", r.Name, m.Name)
		}
	}
	if len(s.Roll.Members) >= MembersMax {
		return fault.New(fault.Limit, "there are %d members", len(s.Roll.Members))
	}
	delete(s.Roll.Tokens, c.Token)
	s.Roll.Members[r.Name], s.Roll.LastID = r, r.ID
	return nil
}

// amend makes a member a voter, or changes its address.
func (s *State) amend(k Kind, c Change) error {
	old := s.Roll.Members[c.Name]
	if old == nil {
		return fault.New(fault.NotFound, "there is no member %s", c.Name)
	}
	r := *old
	if k == KindVote {
		if r.Role == RoleHost {
			return fault.New(fault.Denied, "member %s is a host, and hosts have no vote", r.Name)
		}
		if r.ID != c.ID || r.Voter {
			return fault.New(fault.Stale, "member %s is number %d, voter %t", r.Name, r.ID, r.Voter)
		}
		r.Voter = true
		s.Roll.Members[r.Name] = &r
		return nil
	}
	r.Address = c.Address
	if err := r.check(); err != nil {
		return err
	}
	for _, m := range s.Roll.Members {
		if m.Name != r.Name && m.Address == r.Address {
			return fault.New(fault.Exists, "member %s has the address %s", m.Name, m.Address)
		}
	}
	s.Roll.Members[r.Name] = &r
	return nil
}

func (s *State) leave(c Change) error {
	r := s.Roll.Members[c.Name]
	if r == nil || r.ID != c.ID {
		return fault.New(fault.NotFound, "there is no member %s of number %d", c.Name, c.ID)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Group)) {
		if _, there := s.Group[name].Entry(c.Name); there {
			return fault.New(fault.Busy, "member %s is in the set of group %q: move or delete the group, or remove it from there", c.Name, name)
		}
	}
	voters := 0
	for _, m := range s.Roll.Members {
		if m.Voter {
			voters++
		}
	}
	if r.Voter && voters == 1 {
		return fault.New(fault.Denied, "member %s is the last that votes", c.Name)
	}
	// Its life is over: a later member of that name begins the one after, and
	// what this one proposed and is still under way speaks for nobody.
	s.Boots[c.Name]++
	delete(s.Roll.Members, c.Name)
	return nil
}

func (r Roll) byToken(t Fingerprint) *Record {
	for _, m := range r.Members {
		if m.Token == t {
			return m
		}
	}
	return nil
}

// check holds what must be so of a membership that was read.
func (r Roll) check() error {
	if r.Members == nil || r.Tokens == nil {
		return fault.New(fault.Corrupt, "the quorum's snapshot lacks its membership")
	}
	ids := map[uint64]bool{}
	for name, m := range r.Members {
		if m == nil || m.Name != name || m.check() != nil || m.ID > r.LastID || ids[m.ID] || m.Voter && m.Role == RoleHost {
			return fault.New(fault.Corrupt, "the quorum's snapshot contradicts itself: member %q", name)
		}
		ids[m.ID] = true
	}
	for hash, t := range r.Tokens {
		if t == nil || t.Hash != hash || !hash.valid() || !t.Role.valid() {
			return fault.New(fault.Corrupt, "the quorum's snapshot contradicts itself: a token")
		}
	}
	return nil
}

// check tells what is wrong with a record.
func (r *Record) check() error {
	switch {
	case !r.Name.Valid():
		return fault.New(fault.Invalid, "%q is no member's name: 1 to 63 of a-z, 0-9, '-' and '.', a letter or digit first", r.Name)
	case r.ID == 0:
		return fault.New(fault.Invalid, "member %s has no number", r.Name)
	case !r.Role.valid():
		return fault.New(fault.Invalid, "%q is not a role: node, witness or host", r.Role)
	case !validAddress(r.Address):
		return fault.New(fault.Invalid, "%q is not an address: host:port", r.Address)
	case !r.Key.valid():
		return fault.New(fault.Invalid, "member %s has no fingerprint", r.Name)
	}
	return nil
}

func (r Role) valid() bool { return r == RoleNode || r == RoleWitness || r == RoleHost }

// Valid tells whether m can name a member.
func (m Member) Valid() bool {
	for i, c := range m {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (i == 0 || c != '-' && c != '.') {
			return false
		}
	}
	return len(m) >= 1 && len(m) <= 63
}

func (f Fingerprint) valid() bool {
	return len(f) == 64 && strings.Trim(string(f), "0123456789abcdef") == ""
}

// validAddress tells whether a is host:port; it looks nothing up.
func validAddress(a string) bool {
	i := strings.LastIndexByte(a, ':')
	if i < 1 || len(a) > 260 || strings.ContainsAny(a, " \t\r\n/@") {
		return false
	}
	host := a[:i]
	if v6 := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") && len(host) > 2; !v6 && strings.ContainsAny(host, "[]:") {
		return false
	}
	port, err := strconv.ParseUint(a[i+1:], 10, 16)
	return err == nil && port > 0
}
