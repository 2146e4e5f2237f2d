package quorumio

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Found makes a cluster of one in dir: a storage node of that name, which peers
// reach at address. Fails with fault.Exists when dir holds a member, and
// fault.Invalid.
func Found(dir string, name quorum.Member, address string) (*identity.Identity, error) {
	// What cannot be is refused before there is a half of it.
	probe := quorum.Record{Name: name, Role: quorum.RoleNode, Address: address, Key: quorum.Fingerprint(strings.Repeat("0", 64))}
	if _, err := quorum.Found(probe); err != nil {
		return nil, err
	}
	j, self, err := identity.Begin(dir, name)
	if err != nil {
		return nil, err
	}
	probe.Key = self.Key
	state, err := quorum.Found(probe)
	if err != nil {
		return nil, err
	}
	m := newMachine()
	m.state = state
	m.state.Index = 1
	data, err := m.encode()
	if err != nil {
		return nil, err
	}
	// A log that begins with a snapshot has no entries from before the cluster,
	// which a later member would need to be told.
	snap := snapshotOf(1, 1, &raftpb.ConfState{Voters: []uint64{self.ID}}, data)
	// The log is first, as in Join.
	if err := createStore(dir, snap, nil, 0); err != nil {
		return nil, err
	}
	return j.Keep()
}

func snapshotOf(index, term uint64, conf *raftpb.ConfState, data []byte) *raftpb.Snapshot {
	return &raftpb.Snapshot{
		Data:     data,
		Metadata: &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: raftpb.EnsureConfState(conf)},
	}
}

// Join makes a member in dir by a token: of that name, reached by its peers at
// address. It can be repeated with the same token and name until it succeeds.
// Fails as identity.Join does.
func Join(ctx context.Context, dir string, t identity.Token, name quorum.Member, address string, role quorum.Role) (*identity.Identity, error) {
	j, err := identity.Join(ctx, dir, t, name, address, role)
	if err != nil {
		return nil, err
	}
	// The log is first: a directory with a certificate has everything.
	if err := createStore(dir, nil, j.Members, j.Boot); err != nil {
		return nil, err
	}
	return j.Keep()
}

// Invite makes a token for one joiner of a role, which will ask at this member,
// for as long as it says. Fails with fault.Denied at a member that cannot sign.
func (m *Member) Invite(ctx context.Context, role quorum.Role, good time.Duration) (identity.Token, error) {
	if !m.id.Signs() {
		return identity.Token{}, fault.New(fault.Denied, "a witness invites nobody: ask a storage node")
	}
	t, err := m.id.NewToken(m.Address())
	if err != nil {
		return t, err
	}
	return t, m.amend(ctx, func(*quorum.State) (quorum.Kind, quorum.Change, error) {
		now := time.Now()
		return quorum.KindInvite, quorum.Change{Token: t.Hash(), Role: role, Expires: now.Add(good).Unix(), Now: now.Unix()}, nil
	})
}

// Withdraw takes a token back, by its hash.
func (m *Member) Withdraw(ctx context.Context, token quorum.Fingerprint) error {
	return m.amend(ctx, func(*quorum.State) (quorum.Kind, quorum.Change, error) {
		return quorum.KindWithdraw, quorum.Change{Token: token}, nil
	})
}

// AddMember enters an applicant, whose key was proven, and spends its token. The
// member gets its state and a vote when it runs. Who was entered by this token
// with this key already is told so again.
func (m *Member) AddMember(ctx context.Context, a identity.Applicant) (identity.Admission, error) {
	joined := func(s *quorum.State) *quorum.Record {
		if r := s.Roll.Members[a.Name]; r != nil && r.Token == a.Token && r.Key == a.Key {
			return r
		}
		return nil
	}
	if joined(m.State()) == nil {
		err := m.amend(ctx, func(s *quorum.State) (quorum.Kind, quorum.Change, error) {
			return quorum.KindJoin, quorum.Change{
				Name: a.Name, ID: s.Roll.LastID + 1, Address: a.Address, Key: a.Key, Token: a.Token, Role: a.Role, Now: time.Now().Unix(),
			}, nil
		})
		if err != nil && joined(m.State()) == nil {
			return identity.Admission{}, err
		}
	}
	s := m.State()
	r := joined(s)
	if r == nil {
		return identity.Admission{}, fault.New(fault.Denied, "member %s was taken out again", a.Name)
	}
	if r.Voter || s.Boots[r.Name] != r.Floor {
		// It has lived: a second beginning would have forgotten what it promised.
		return identity.Admission{}, fault.New(fault.Exists, "member %s has joined and run: remove it, and join anew", r.Name)
	}
	out := identity.Admission{Record: *r, Boot: r.Floor}
	for _, r := range s.Roll.Sorted() {
		out.Members = append(out.Members, *r)
	}
	return out, nil
}

// RemoveMember takes another member out of the cluster. Its certificate is good
// for nothing then. Fails with fault.Busy when it is in a group's set. A member
// does not remove itself: it would not learn that it had.
func (m *Member) RemoveMember(ctx context.Context, name quorum.Member) error {
	if name == m.self.Member {
		return fault.New(fault.Invalid, "a member is removed by another one")
	}
	return m.amend(ctx, func(s *quorum.State) (quorum.Kind, quorum.Change, error) {
		r := s.Roll.Members[name]
		if r == nil {
			return "", quorum.Change{}, fault.New(fault.NotFound, "there is no member %s", name)
		}
		return quorum.KindLeave, quorum.Change{Name: name, ID: r.ID}, nil
	})
}

// ChangeAddress enters where peers reach a member. For this one it listens there
// as well from now on, and goes on listening where it did until Close; when it
// was given an Address apart from where it listens, that is for the caller to
// arrange. Connections that stand are not ended.
func (m *Member) ChangeAddress(ctx context.Context, name quorum.Member, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fault.Wrap(fault.Invalid, err, "an address")
	}
	if name == m.self.Member && address != m.Address() {
		if _, err := m.transport.listen(address); err != nil {
			return err
		}
	}
	err := m.amend(ctx, func(*quorum.State) (quorum.Kind, quorum.Change, error) {
		return quorum.KindMove, quorum.Change{Name: name, Address: address}, nil
	})
	if err == nil && name == m.self.Member {
		m.address.Store(&address)
		m.transport.setAddress(address)
	}
	return err
}

// amend has the membership changed as build says, of the newest state: when
// another change came first, it is built again.
func (m *Member) amend(ctx context.Context, build func(*quorum.State) (quorum.Kind, quorum.Change, error)) error {
	for {
		s := m.State()
		kind, change, err := build(s)
		if err != nil {
			return err
		}
		err = m.propose(ctx, quorum.Command{Kind: kind, Revision: s.Roll.Revision, By: m.self, Change: &change})
		// A refusal for the revision came from a state that this member has by now,
		// and which is another: so this comes to an end.
		if !fault.Is(err, fault.Stale) || m.State().Roll.Revision == s.Roll.Revision {
			return err
		}
	}
}

// joinTime bounds a joiner's stay.
const joinTime = 15 * time.Second

// serveJoin answers a joiner.
func (m *Member) serveJoin(conn *tls.Conn) {
	ctx, cancel := context.WithTimeout(m.transport.ctx, joinTime)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(joinTime + time.Second)); err != nil {
		return // it has gone
	}
	from := conn.RemoteAddr().String()
	err := m.id.Serve(conn, func(a identity.Applicant) (identity.Admission, error) { return m.AddMember(ctx, a) })
	if err != nil {
		m.log.Warn("a joiner was refused", "from", from, "err", err)
		return
	}
	m.log.Info("a member has joined", "from", from)
}
