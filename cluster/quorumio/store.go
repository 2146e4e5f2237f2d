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

// store is the log on disk, and what raft reads of it in memory. The loop owns
// it.
type store struct {
	db   *bolt.DB
	mem  *raft.MemoryStorage
	boot quorum.Boot
	// unsaved is a commit index that was not worth a write; it goes with the next.
	unsaved *raftpb.HardState
	seeds   []quorum.Record
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
		err = s.write(hard, nil, snap)
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
	s := &store{db: db, mem: raft.NewMemoryStorage()}
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

// save makes a Ready's part of the log stable, then shows it to raft. After an
// error nobody knows what is stable: the member must end.
func (s *store) save(hard *raftpb.HardState, entries []*raftpb.Entry, snap *raftpb.Snapshot, mustSync bool) error {
	if raft.IsEmptyHardState(hard) {
		hard = nil
	}
	if hard != nil {
		s.unsaved = hard
	}
	if mustSync || len(entries) > 0 || !raft.IsEmptySnap(snap) {
		if err := s.write(s.unsaved, entries, snap); err != nil {
			return err
		}
		s.unsaved = nil
	}
	if !raft.IsEmptySnap(snap) {
		if err := s.mem.ApplySnapshot(snap); err != nil {
			return fault.Wrap(fault.Internal, err, "a snapshot")
		}
	}
	if hard != nil {
		if err := s.mem.SetHardState(hard); err != nil {
			return err
		}
	}
	return s.mem.Append(entries)
}

// write is one transaction, and stable when it returns. New entries replace all
// from the first of them on; a snapshot replaces the log.
func (s *store) write(hard *raftpb.HardState, entries []*raftpb.Entry, snap *raftpb.Snapshot) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		meta, log := tx.Bucket(bucketMeta), tx.Bucket(bucketLog)
		if !raft.IsEmptySnap(snap) {
			if err := put(meta, keySnapshot, snap); err != nil {
				return err
			}
			if err := trim(log, 0, ^uint64(0)); err != nil {
				return err
			}
		}
		if hard != nil {
			if err := put(meta, keyHard, hard); err != nil {
				return err
			}
		}
		if len(entries) == 0 {
			return nil
		}
		if err := trim(log, entries[0].GetIndex(), ^uint64(0)); err != nil {
			return err
		}
		for _, e := range entries {
			if err := put(log, binary.BigEndian.AppendUint64(nil, e.GetIndex()), e); err != nil {
				return err
			}
		}
		return nil
	})
	return fault.Wrap(fault.Failed, err, "write the member's log")
}

// compact replaces the log up to index by a snapshot. The memory keeps some
// entries more, for peers that are only a little behind.
func (s *store) compact(index uint64, conf *raftpb.ConfState, data []byte, keepEntries uint64) error {
	snap, err := s.mem.CreateSnapshot(index, conf, data)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "make a snapshot")
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		if err := put(tx.Bucket(bucketMeta), keySnapshot, snap); err != nil {
			return err
		}
		if s.unsaved != nil { // a snapshot beyond the commit index would not be one
			if err := put(tx.Bucket(bucketMeta), keyHard, s.unsaved); err != nil {
				return err
			}
		}
		return trim(tx.Bucket(bucketLog), 0, index)
	})
	if err != nil {
		return fault.Wrap(fault.Failed, err, "write a snapshot")
	}
	s.unsaved = nil
	if index <= keepEntries {
		return nil
	}
	if err := s.mem.Compact(index - keepEntries); err != nil && !errors.Is(err, raft.ErrCompacted) {
		return fault.Wrap(fault.Internal, err, "compact the log")
	}
	return nil
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
