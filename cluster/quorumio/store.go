package quorumio

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// storeFile is the log in a member's directory. Its form:
//
//	bucket meta   format    1 byte
//	              boot      8 bytes, big-endian: the newest life that was begun
//	              seeds     JSON: members when this one joined
//	              hard      raftpb.HardState
//	              snapshot  raftpb.Snapshot
//	bucket log    index, 8 bytes big-endian -> raftpb.Entry, after the snapshot
//
// Every value but the format's has its CRC-32C behind it.
const (
	storeFile   = "quorum.db"
	storeFormat = 1
)

var (
	bucketMeta, bucketLog              = []byte("meta"), []byte("log")
	keyFormat, keyBoot, keySeeds       = []byte("format"), []byte("boot"), []byte("seeds")
	keyHard, keySnapshot               = []byte("hard"), []byte("snapshot")
	castagnoli                         = crc32.MakeTable(crc32.Castagnoli)
	errNoStore                   error = &fault.Error{Kind: fault.NotFound, Text: "the member has no log"}
)

// store is the log on disk, and what raft reads of it in memory. A change goes to
// the disk first (commit), and is shown to raft when it is stable (show). Once
// the member runs, the loop owns mem, and the disk's goroutine db and hard.
type store struct {
	db    *bolt.DB
	mem   *raft.MemoryStorage
	boot  quorum.Boot
	seeds []quorum.Record
	// hard is what the file has, and unsaved a commit index that was not worth a
	// write; it goes with the next.
	hard, unsaved *raftpb.HardState
}

// change is a step of the log. Its entries replace all from the first of them on.
type change struct {
	hard    *raftpb.HardState // nil when it is as before
	entries []*raftpb.Entry
	snap    *raftpb.Snapshot // that came from the leader: it replaces the log
	own     *raftpb.Snapshot // of our own making: it replaces the log up to its index
}

// empty tells whether nothing of c is worth a write, after hard.
func (c change) empty(hard *raftpb.HardState) bool {
	votes := c.hard != nil && (c.hard.GetTerm() != hard.GetTerm() || c.hard.GetVote() != hard.GetVote())
	return !votes && len(c.entries) == 0 && raft.IsEmptySnap(c.snap) && c.own == nil
}

// bytes returns about how much memory c holds.
func (c change) bytes() int {
	n := len(c.snap.GetData()) + len(c.own.GetData())
	for _, e := range c.entries {
		n += len(e.GetData()) + entryBytes
	}
	return n
}

// createStore makes a member's log: with a snapshot for the first member, with
// seeds for one that joins. It appears as a whole or not at all.
func createStore(dir string, snap *raftpb.Snapshot, seeds []quorum.Record, boot quorum.Boot) error {
	path := filepath.Join(dir, storeFile)
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Failed, err, "the member's log")
	}
	db, err := bolt.Open(path+".new", 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return fault.Wrap(fault.Failed, err, "the member's log")
	}
	s := &store{db: db}
	err = db.Update(func(tx *bolt.Tx) error {
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketLog); err != nil {
			return err
		}
		text, err := json.Marshal(seeds)
		if err != nil {
			return err
		}
		return errors.Join(
			meta.Put(keyFormat, []byte{storeFormat}),
			meta.Put(keySeeds, seal(text)),
			meta.Put(keyBoot, seal(binary.BigEndian.AppendUint64(nil, uint64(boot)))))
	})
	if err == nil && snap != nil {
		hard := &raftpb.HardState{Term: new(snap.GetMetadata().GetTerm()), Commit: new(snap.GetMetadata().GetIndex())}
		err = s.write([]change{{hard: hard, snap: snap}}, hard)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return fault.Wrap(fault.Failed, err, "the member's log")
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fault.Wrap(fault.Failed, err, "the member's log")
	}
	d, err := os.Open(dir)
	if err != nil {
		return fault.Wrap(fault.Failed, err, "the member's directory")
	}
	return fault.Wrap(fault.Failed, errors.Join(d.Sync(), d.Close()), "the member's directory")
}

// openStore reads the log. Fails with fault.Busy when another process has it,
// fault.NotFound when there is none, fault.Corrupt and fault.Stale.
func openStore(dir string) (*store, error) {
	path := filepath.Join(dir, storeFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, errNoStore
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fault.Wrap(fault.Busy, err, "another process runs this member")
	case err != nil:
		return nil, fault.Wrap(fault.Corrupt, err, "the member's log cannot be opened")
	}
	s := &store{db: db, mem: raft.NewMemoryStorage(), hard: new(raftpb.HardState)}
	if err := db.View(s.read); err != nil {
		_ = db.Close() // nothing was written
		return nil, err
	}
	return s, nil
}

func (s *store) close() error {
	return fault.Wrap(fault.Failed, s.db.Close(), "the member's log")
}

// read fills the memory from the file.
func (s *store) read(tx *bolt.Tx) error {
	meta, log := tx.Bucket(bucketMeta), tx.Bucket(bucketLog)
	if meta == nil || log == nil {
		return fault.New(fault.Corrupt, "the member's log lacks a part")
	}
	if f := meta.Get(keyFormat); len(f) != 1 || f[0] != storeFormat {
		return fault.New(fault.Stale, "the member's log is of format %v; this program knows %d", f, storeFormat)
	}
	boot, err := unseal(meta.Get(keyBoot), "life")
	if err != nil || len(boot) != 8 {
		return fault.New(fault.Corrupt, "the number of the member's life is damaged")
	}
	s.boot = quorum.Boot(binary.BigEndian.Uint64(boot))
	seeds, err := unseal(meta.Get(keySeeds), "seeds")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(seeds, &s.seeds); err != nil {
		return fault.Wrap(fault.Corrupt, err, "the member's seeds")
	}
	snap, hard := new(raftpb.Snapshot), new(raftpb.HardState)
	if err := get(meta, keySnapshot, snap); err != nil {
		return err
	}
	if err := get(meta, keyHard, hard); err != nil {
		return err
	}
	if !raft.IsEmptySnap(snap) {
		if err := s.mem.ApplySnapshot(snap); err != nil {
			return fault.Wrap(fault.Corrupt, err, "the member's snapshot")
		}
	}
	if !raft.IsEmptyHardState(hard) {
		s.hard = hard
		if err := s.mem.SetHardState(hard); err != nil {
			return err
		}
	}
	return s.readLog(log, snap.GetMetadata().GetIndex(), hard.GetCommit())
}

// readLog reads the entries, which must follow the snapshot without a gap and
// reach what was committed.
func (s *store) readLog(log *bolt.Bucket, last, commit uint64) error {
	var entries []*raftpb.Entry
	err := log.ForEach(func(k, v []byte) error {
		p, err := unseal(v, "entry")
		if err != nil {
			return err
		}
		e := new(raftpb.Entry)
		if err := proto.Unmarshal(p, e); err != nil {
			return fault.Wrap(fault.Corrupt, err, "an entry of the member's log")
		}
		last++
		if len(k) != 8 || binary.BigEndian.Uint64(k) != last || e.GetIndex() != last {
			return fault.New(fault.Corrupt, "the member's log has a gap before entry %d", e.GetIndex())
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	if commit > last {
		return fault.New(fault.Corrupt, "the member's log ends at %d, before %d which was committed", last, commit)
	}
	return s.mem.Append(entries)
}

// begin begins a life: its number is stable when begin returns.
func (s *store) begin() error {
	next := s.boot + 1
	err := s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyBoot, seal(binary.BigEndian.AppendUint64(nil, uint64(next))))
	})
	if err != nil {
		return fault.Wrap(fault.Failed, err, "begin a life")
	}
	s.boot = next
	return nil
}

// commit makes changes stable, in one write; none, when they have a commit index
// only. After an error nobody knows what is stable: the member must end.
func (s *store) commit(changes []change) error {
	worth := false
	for _, c := range changes {
		worth = worth || !c.empty(s.hard)
		if c.hard != nil {
			s.unsaved = c.hard
		}
	}
	if !worth {
		return nil
	}
	if err := s.write(changes, s.unsaved); err != nil {
		return err
	}
	if s.unsaved != nil {
		s.hard, s.unsaved = s.unsaved, nil
	}
	return nil
}

// write is one transaction, and stable when it returns. hard is the newest one.
func (s *store) write(changes []change, hard *raftpb.HardState) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		meta, log := tx.Bucket(bucketMeta), tx.Bucket(bucketLog)
		for _, c := range changes {
			if err := c.write(meta, log); err != nil {
				return err
			}
		}
		// A snapshot beyond the commit index would not be one: so this goes with it.
		if hard != nil {
			return put(meta, keyHard, hard)
		}
		return nil
	})
	return fault.Wrap(fault.Failed, err, "write the member's log")
}

// write puts all of c but its hard state.
func (c change) write(meta, log *bolt.Bucket) error {
	if !raft.IsEmptySnap(c.snap) {
		if err := errors.Join(put(meta, keySnapshot, c.snap), trim(log, 0, ^uint64(0))); err != nil {
			return err
		}
	}
	if len(c.entries) > 0 {
		if err := trim(log, c.entries[0].GetIndex(), ^uint64(0)); err != nil {
			return err
		}
	}
	for _, e := range c.entries {
		if err := put(log, binary.BigEndian.AppendUint64(nil, e.GetIndex()), e); err != nil {
			return err
		}
	}
	if c.own != nil {
		return errors.Join(put(meta, keySnapshot, c.own), trim(log, 0, c.own.GetMetadata().GetIndex()))
	}
	return nil
}

// show lets raft read a change that is stable. A snapshot of our own is in the
// memory already: see snapshot.
func (s *store) show(c change) error {
	if !raft.IsEmptySnap(c.snap) {
		if err := s.mem.ApplySnapshot(c.snap); err != nil {
			return fault.Wrap(fault.Internal, err, "a snapshot")
		}
	}
	if c.hard != nil {
		if err := s.mem.SetHardState(c.hard); err != nil {
			return err
		}
	}
	return s.mem.Append(c.entries)
}

// snapshot makes a snapshot of the log up to index, which is stable there, and
// returns the change that brings it to the disk. The memory lets go of what the
// snapshot covers, but for at most keepEntries and keepBytes, for peers that are
// only a little behind.
func (s *store) snapshot(index uint64, conf *raftpb.ConfState, data []byte, keepEntries uint64, keepBytes int) (change, error) {
	snap, err := s.mem.CreateSnapshot(index, conf, data)
	if err != nil {
		return change{}, fault.Wrap(fault.Internal, err, "make a snapshot")
	}
	first, _ := s.mem.FirstIndex() // it does not fail
	cut := index
	if first <= index {
		entries, err := s.mem.Entries(first, index+1, ^uint64(0))
		if err != nil {
			return change{}, fault.Wrap(fault.Internal, err, "compact the log")
		}
		for i := len(entries) - 1; i >= 0 && index-cut < keepEntries; i-- {
			if keepBytes -= len(entries[i].GetData()); keepBytes < 0 {
				break
			}
			cut--
		}
	}
	if cut < first {
		return change{own: snap}, nil
	}
	if err := s.mem.Compact(cut); err != nil && !errors.Is(err, raft.ErrCompacted) {
		return change{}, fault.Wrap(fault.Internal, err, "compact the log")
	}
	return change{own: snap}, nil
}

// trim deletes the entries from one index to another, both included.
func trim(log *bolt.Bucket, from, to uint64) error {
	var keys [][]byte
	c := log.Cursor()
	for k, _ := c.Seek(binary.BigEndian.AppendUint64(nil, from)); k != nil && binary.BigEndian.Uint64(k) <= to; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := log.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func put(b *bolt.Bucket, key []byte, m proto.Message) error {
	p, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return b.Put(key, seal(p))
}

// get reads what put wrote; nothing when there is nothing.
func get(b *bolt.Bucket, key []byte, m proto.Message) error {
	v := b.Get(key)
	if v == nil {
		return nil
	}
	p, err := unseal(v, string(key))
	if err != nil {
		return err
	}
	return fault.Wrap(fault.Corrupt, proto.Unmarshal(p, m), "the member's "+string(key))
}

func seal(p []byte) []byte { return binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli)) }

func unseal(p []byte, what string) ([]byte, error) {
	if len(p) < 4 {
		return nil, fault.New(fault.Corrupt, "the member's log: %s is damaged", what)
	}
	body := p[:len(p)-4]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(p[len(p)-4:]) {
		return nil, fault.New(fault.Corrupt, "the member's log: %s is damaged", what)
	}
	return body, nil
}
