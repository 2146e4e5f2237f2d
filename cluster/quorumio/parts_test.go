package quorumio

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

const unkeyed = quorum.Fingerprint("0000000000000000000000000000000000000000000000000000000000000000")

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	p, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// spoil closes a member's file under it, on the loop, so that nothing races.
func spoil(t *testing.T, s *site) {
	t.Helper()
	done := make(chan struct{})
	s.deliver(meddle(func(l *loop) {
		defer close(done)
		if err := l.store.db.Close(); err != nil {
			t.Error(err)
		}
	}))
	<-done
}

func entries(from, n int, term uint64) (list []*raftpb.Entry) {
	for i := range n {
		list = append(list, &raftpb.Entry{Index: new(uint64(from + i)), Term: &term, Data: []byte{byte(term), byte(i)}})
	}
	return list
}

// compact makes a snapshot of a store's log and brings it to the disk.
func compact(s *store, index uint64, data []byte, keepEntries uint64, keepBytes int) error {
	c, err := s.snapshot(index, &raftpb.ConfState{Voters: []uint64{1, 2}}, data, keepEntries, keepBytes)
	return errors.Join(err, s.commit([]change{c}))
}

// TestStore plays what raft does to a log and reads it back each time.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	if _, err := openStore(dir); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	if err := createStore(dir, snapshotOf(1, 1, &raftpb.ConfState{Voters: []uint64{1}}, []byte("one")), nil, 4); err != nil {
		t.Fatal(err)
	}
	hard := func(term, commit uint64) *raftpb.HardState {
		return &raftpb.HardState{Term: &term, Commit: &commit, Vote: new(uint64(1))}
	}
	for i, step := range []struct {
		name                string
		do                  func(*store) error
		first, last, commit uint64
	}{
		{"new", func(*store) error { return nil }, 2, 1, 1},
		{"append", func(s *store) error { return s.save(change{hard: hard(2, 1), entries: entries(2, 5, 2)}) }, 2, 6, 1},
		{"a conflict cuts", func(s *store) error { return s.save(change{hard: hard(3, 3), entries: entries(4, 1, 3)}) }, 2, 4, 3},
		{"a commit alone is not written", func(s *store) error { return s.save(change{hard: hard(3, 4)}) }, 2, 4, 3},
		{"but with the next", func(s *store) error {
			return errors.Join(s.save(change{hard: hard(3, 4)}), s.save(change{entries: entries(5, 2, 3)}))
		}, 2, 6, 4},
		{"compact", func(s *store) error {
			return errors.Join(s.save(change{hard: hard(3, 6)}), compact(s, 5, []byte("five"), 2, compactBytes))
		}, 6, 6, 6},
		{"a snapshot comes", func(s *store) error {
			return s.save(change{hard: hard(4, 20), snap: snapshotOf(20, 4, nil, []byte("twenty"))})
		}, 21, 20, 20},
		{"several at once", func(s *store) error {
			return s.commit([]change{
				{entries: entries(21, 4, 4)}, {hard: hard(5, 20)}, {entries: entries(22, 1, 5)}, {hard: hard(5, 22)},
			})
		}, 21, 22, 22},
		{"append after it", func(s *store) error { return s.save(change{entries: entries(22, 2, 5)}) }, 21, 23, 22},
	} {
		s, err := openStore(dir)
		if err != nil {
			t.Fatalf("before %s: %v", step.name, err)
		}
		if err := errors.Join(s.begin(), step.do(s), s.close()); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		s, err = openStore(dir)
		if err != nil {
			t.Fatalf("after %s: %v", step.name, err)
		}
		first, _ := s.mem.FirstIndex()
		last, _ := s.mem.LastIndex()
		h, _, _ := s.mem.InitialState()
		if first != step.first || last != step.last || h.GetCommit() != step.commit || s.boot != quorum.Boot(5+i) {
			t.Errorf("%s: %d to %d, committed %d, life %d", step.name, first, last, h.GetCommit(), s.boot)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKept keeps entries of before a snapshot for peers, by number and by size.
func TestKept(t *testing.T) {
	for name, tc := range map[string]struct {
		keepEntries uint64
		keepBytes   int
		first       uint64
	}{
		"by number": {3, 1 << 20, 6}, "by size": {8, 2 * 2, 7}, "none": {0, 0, 9}, "all": {100, 1 << 20, 2},
	} {
		dir := t.TempDir()
		if err := createStore(dir, snapshotOf(1, 1, nil, nil), nil, 0); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		hard := &raftpb.HardState{Term: new(uint64(2)), Commit: new(uint64(8))}
		if err := errors.Join(s.save(change{hard: hard, entries: entries(2, 8, 2)}), compact(s, 8, nil, tc.keepEntries, tc.keepBytes)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if first, _ := s.mem.FirstIndex(); first != tc.first {
			t.Errorf("%s: the memory begins at %d, not %d", name, first, tc.first)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoreDamaged refuses a log with anything in it altered or missing.
func TestStoreDamaged(t *testing.T) {
	flip := func(b *bolt.Bucket, key []byte) error {
		v := bytes.Clone(b.Get(key))
		v[0] ^= 1
		return b.Put(key, v)
	}
	third := []byte{0, 0, 0, 0, 0, 0, 0, 3}
	for name, tc := range map[string]struct {
		harm func(meta, log *bolt.Bucket) error
		want fault.Kind
	}{
		"format":   {func(meta, _ *bolt.Bucket) error { return meta.Put(keyFormat, []byte{9}) }, fault.Stale},
		"life":     {func(meta, _ *bolt.Bucket) error { return flip(meta, keyBoot) }, fault.Corrupt},
		"no life":  {func(meta, _ *bolt.Bucket) error { return meta.Delete(keyBoot) }, fault.Corrupt},
		"seeds":    {func(meta, _ *bolt.Bucket) error { return flip(meta, keySeeds) }, fault.Corrupt},
		"hard":     {func(meta, _ *bolt.Bucket) error { return flip(meta, keyHard) }, fault.Corrupt},
		"snapshot": {func(meta, _ *bolt.Bucket) error { return flip(meta, keySnapshot) }, fault.Corrupt},
		"entry":    {func(_, log *bolt.Bucket) error { return flip(log, third) }, fault.Corrupt},
		"gap":      {func(_, log *bolt.Bucket) error { return log.Delete(third) }, fault.Corrupt},
		"end":      {func(_, log *bolt.Bucket) error { return trim(log, 3, ^uint64(0)) }, fault.Corrupt},
	} {
		dir := t.TempDir()
		if err := createStore(dir, snapshotOf(1, 1, nil, nil), nil, 0); err != nil {
			t.Fatal(err)
		}
		s, err := openStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(s.save(change{hard: &raftpb.HardState{Term: new(uint64(2)), Commit: new(uint64(4))}, entries: entries(2, 3, 2)}),
			s.db.Update(func(tx *bolt.Tx) error { return tc.harm(tx.Bucket(bucketMeta), tx.Bucket(bucketLog)) }), s.close())
		if err != nil {
			t.Fatal(err)
		}
		if s, err := openStore(dir); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = s.close()
			}
		}
	}
}

// playOn applies member a's command to m as the next entry, and holds that no
// state that was published changes.
func playOn(t *testing.T, m *machine, seq uint64, c quorum.Command, change *raftpb.ConfChange) outcome {
	t.Helper()
	index := m.state.Index + 1
	c.By = quorum.Incarnation{Member: "a", Boot: 1}
	p, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e := &raftpb.Entry{Index: &index, Type: raftpb.EntryNormal.Enum(), Data: encodeProposal(tag{1, 1, seq}, p)}
	if change != nil {
		change.Context = e.Data
		e.Type, e.Data = raftpb.EntryConfChange.Enum(), marshal(t, change)
	}
	before, old := m.state.Clone(), m.state
	out, err := m.apply(e)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, old); diff != "" || m.state.Index != index {
		t.Fatalf("a published state has changed:\n%s", diff)
	}
	return out
}

// TestMachine holds that a proposal is applied once, and that an entry changes
// raft's configuration only as its command says, and only if that was not
// refused.
func TestMachine(t *testing.T) {
	state, err := quorum.Found(quorum.Record{Name: "a", Role: quorum.RoleNode, Address: "a:1", Key: unkeyed})
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine()
	m.state = state
	m.state.Index = 1
	play := func(seq uint64, c quorum.Command, change *raftpb.ConfChange) outcome {
		t.Helper()
		return playOn(t, m, seq, c, change)
	}
	invite := quorum.Command{Kind: quorum.KindInvite, Revision: 1, Change: &quorum.Change{Token: unkeyed, Role: quorum.RoleNode, Expires: 9}}
	key := quorum.Fingerprint("1" + unkeyed[1:])
	join := quorum.Command{Kind: quorum.KindJoin, Revision: 2, Change: &quorum.Change{Name: "b", ID: 2, Address: "b:1", Key: key, Token: unkeyed}}
	add := func(id uint64) *raftpb.ConfChange {
		return &raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: &id}
	}
	if out := play(1, quorum.Command{Kind: quorum.KindBoot}, nil); out.err != nil || out.void {
		t.Fatal(out)
	}
	if out := play(3, invite, nil); out.err != nil || out.void {
		t.Fatal(out)
	}
	for _, seq := range []uint64{1, 2, 3} {
		if out := play(seq, invite, nil); !out.void {
			t.Errorf("number %d after 3 is applied: %+v", seq, out)
		}
	}
	for name, change := range map[string]*raftpb.ConfChange{"none": nil, "another's": add(3), "a vote": {Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(2))}} {
		if out := play(m.last[1].Seq+1, join, change); !fault.Is(out.err, fault.Invalid) || out.change != nil {
			t.Errorf("a change of %s: %+v", name, out)
		}
	}
	late := join
	late.Revision = 1
	if out := play(20, late, add(2)); !fault.Is(out.err, fault.Stale) || out.change != nil {
		t.Errorf("refused: %+v", out)
	}
	if out := play(21, join, add(2)); out.err != nil || out.change.GetNodeId() != 2 || m.state.Roll.Members["b"] == nil {
		t.Errorf("joined: %+v", out)
	}
	p, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeMachine(p)
	if err != nil || cmp.Diff(m.state, back.state) != "" || cmp.Diff(m.last, back.last) != "" {
		t.Errorf("%v: %s", err, cmp.Diff(m.state, back.state))
	}
	if _, err := m.apply(&raftpb.Entry{Index: new(uint64(99)), Data: []byte("x")}); !fault.Is(err, fault.Corrupt) {
		t.Errorf("an entry of no form: %v", err)
	}
}

// FuzzFrame feeds the decoder of what comes by wire.
func FuzzFrame(f *testing.F) {
	command, _ := quorum.Command{Kind: quorum.KindBoot}.Encode()
	proposal := encodeProposal(tag{2, 1, 1}, command)
	change := &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(1)), Context: proposal}
	for _, m := range []*raftpb.Message{
		{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1))},
		{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Entries: []*raftpb.Entry{{Data: proposal}}},
		{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Data: marshal(f, change)}}},
		{Type: raftpb.MsgSnap.Enum(), From: new(uint64(2)), To: new(uint64(1)), Snapshot: snapshotOf(1, 1, nil, nil)},
	} {
		var b bytes.Buffer
		_ = writeFrame(&b, frameRaft, marshal(f, m))
		f.Add(b.Bytes())
	}
	var b bytes.Buffer
	_ = writeHello(&b, frameHello, hello{To: 1, Address: "h:1"})
	f.Add(b.Bytes())
	b.Reset()
	_ = writeFrame(&b, frameAlive, nil)
	f.Add(b.Bytes())
	f.Add([]byte{1, 3, 0xff, 0xff, 0xff, 0xff, 0})
	f.Add([]byte{1, 4, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _ = readHello(bytes.NewReader(p), frameHello)
		kind, payload, err := readAny(bytes.NewReader(p), 1<<20)
		if err != nil {
			return
		}
		if kind == frameAlive && len(payload) > 0 || kind != frameAlive && kind != frameRaft {
			t.Fatalf("a frame of kind %d, %d bytes, is taken", kind, len(payload))
		}
		if len(payload)+frameHeadBytes > len(p) {
			t.Fatalf("%d bytes of %d", len(payload), len(p))
		}
		msg, err := decodeMessage(payload, 2, 1)
		if err != nil {
			return
		}
		if msg.GetType() != raftpb.MsgProp {
			return
		}
		// What is let through can be applied.
		for i, e := range msg.GetEntries() {
			e.Index = new(uint64(i + 1))
			if _, err := newMachine().apply(e); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzMachine feeds the decoder of snapshots.
func FuzzMachine(f *testing.F) {
	p, _ := newMachine().encode()
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if m, err := decodeMachine(p); err == nil {
			if _, err := m.apply(&raftpb.Entry{Index: new(m.state.Index + 1)}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// save is commit and show of one change.
func (s *store) save(c change) error {
	if err := s.commit([]change{c}); err != nil {
		return err
	}
	return s.show(c)
}
