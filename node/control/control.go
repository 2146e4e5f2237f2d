// Package control keeps a node's control state: which pools it opens, the
// targets it offers, the initiators it knows and what is mapped to whom. It
// stores and checks; it opens nothing and serves nothing.
//
// The state is small and read often, so it is held in memory; every change is
// one transaction of the file below before memory changes. Secrets lie apart,
// each in a file of mode 0600, so that a copy of the state for a bug report
// holds none. A secret's file is written and synced before the transaction
// that refers to it, and the one it replaces is deleted after: a crash between
// leaves a file nobody refers to, which Open deletes, and never a reference
// without its file.
package control

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"steadfast/fault"
)

// schema is the version of the state's form. A newer one is refused.
const schema = 1

// Buckets of the file. Values are JSON but for node's.
const (
	bucketNode       = "node"
	bucketPools      = "pools"
	bucketTargets    = "targets"
	bucketInitiators = "initiators"
	bucketMappings   = "mappings"
)

// Pool is a pool that the node opens when it starts.
type Pool struct {
	ID    string   `json:"id"` // hex
	Name  string   `json:"name"`
	Paths []string `json:"paths"` // of its drives
	// Leaving are paths of drives to remove as soon as they are empty.
	Leaving []string `json:"leaving,omitempty"`
}

// Target is an iSCSI target.
type Target struct {
	Name   string   `json:"name"`
	Alias  string   `json:"alias,omitempty"`
	Groups []uint16 `json:"groups,omitempty"` // portal group tags; empty: all
}

// Initiator is an initiator that the node knows.
type Initiator struct {
	Name       string `json:"name"` // iSCSI name, or Anyone
	Comment    string `json:"comment,omitempty"`
	Group      string `json:"group,omitempty"`
	ChapUser   string `json:"chap_user,omitempty"`
	MutualUser string `json:"mutual_user,omitempty"`
	// ChapSecret and MutualSecret name files under the secrets directory.
	ChapSecret   string `json:"chap_secret,omitempty"`
	MutualSecret string `json:"mutual_secret,omitempty"`
}

// Anyone as an initiator's name is every initiator. Only `steadfast up` on
// its loopback portal makes such an entry.
const Anyone = "*"

// Mapping shows a volume to an initiator or a group, through a target.
type Mapping struct {
	Target    string `json:"target"`
	Initiator string `json:"initiator"` // an initiator's or a group's name
	LUN       uint16 `json:"lun"`
	Pool      string `json:"pool"`   // the pool's identifier, hex; empty: Group's
	Volume    string `json:"volume"` // the volume's identifier, hex
	// VolumeName is for people, while the pool is not open.
	VolumeName string `json:"volume_name"`
	ReadOnly   bool   `json:"read_only,omitempty"`
	// Group is the resource group of a mirrored volume.
	Group string `json:"group,omitempty"`
}

// key orders mappings by target, initiator and number.
func (m Mapping) key() string { return fmt.Sprintf("%s\x00%s\x00%05d", m.Target, m.Initiator, m.LUN) }

// State is the control state, open. Its methods may be called from several
// goroutines; checks that span several entries are the caller's to serialise.
type State struct {
	dir string
	db  *bolt.DB

	mu         sync.RWMutex
	nodeID     string
	pools      map[string]Pool
	targets    map[string]Target
	initiators map[string]Initiator
	mappings   map[string]Mapping
	shared     *shared // nil: the node is in no cluster
}

// Open opens the control state in dir, and makes it if there is none. The
// caller holds the directory's lock. Fails with fault.Corrupt when the file is
// damaged and fault.Stale when a newer version wrote it.
func Open(dir string) (*State, error) {
	s := &State{
		dir: dir, pools: map[string]Pool{}, targets: map[string]Target{},
		initiators: map[string]Initiator{}, mappings: map[string]Mapping{},
	}
	if err := os.MkdirAll(s.secretPath(""), 0o700); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot make the secrets directory")
	}
	path := filepath.Join(dir, "control.db")
	// The timeout is for another program that looks at the file: the node's
	// own lock keeps a second node away.
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		kind := fault.Corrupt
		if errors.Is(err, bolterrors.ErrTimeout) {
			kind = fault.Busy
		}
		return nil, fault.Wrap(kind, err, "cannot open the control state "+path)
	}
	s.db = db
	if err := s.load(); err != nil {
		return nil, errors.Join(fault.Wrap(fault.KindOf(err), err, "control state "+path), db.Close())
	}
	s.sweep()
	return s, nil
}

// load reads everything into memory, and makes what a new file lacks.
func (s *State) load() error {
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{bucketNode, bucketPools, bucketTargets, bucketInitiators, bucketMappings} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		if err := s.loadNode(tx.Bucket([]byte(bucketNode))); err != nil {
			return err
		}
		return errors.Join(
			loadAll(tx, bucketPools, s.pools), loadAll(tx, bucketTargets, s.targets),
			loadAll(tx, bucketInitiators, s.initiators), loadAll(tx, bucketMappings, s.mappings),
		)
	})
}

func (s *State) loadNode(b *bolt.Bucket) error {
	if v := b.Get([]byte("schema")); v != nil {
		var have int
		if err := json.Unmarshal(v, &have); err != nil {
			return fault.Wrap(fault.Corrupt, err, "schema")
		}
		if have > schema {
			return fault.New(fault.Stale, "is of version %d, and this program knows %d: use the program that wrote it, or a newer one", have, schema)
		}
	}
	if v := b.Get([]byte("id")); v != nil {
		s.nodeID = string(v)
		return nil
	}
	id, err := randomHex(8)
	if err != nil {
		return err
	}
	s.nodeID = id
	return errors.Join(b.Put([]byte("schema"), fmt.Append(nil, schema)), b.Put([]byte("id"), []byte(id)))
}

func loadAll[T any](tx *bolt.Tx, bucket string, into map[string]T) error {
	return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
		var t T
		if err := json.Unmarshal(v, &t); err != nil {
			return fault.Wrap(fault.Corrupt, err, bucket+" "+string(k))
		}
		into[string(k)] = t
		return nil
	})
}

// Close closes the file.
func (s *State) Close() error { return s.db.Close() }

// NodeID identifies the node: 16 hex digits, random, kept.
func (s *State) NodeID() string { return s.nodeID }

// edit is one change of one bucket: a nil value deletes the key.
type edit struct {
	bucket, key string
	value       any
}

// commit makes edits durable as one transaction, then visible. Those of shared
// records, and others, are two.
func (s *State) commit(edits ...edit) error {
	if sh := s.sharing(); sh != nil {
		var both [2][]edit
		for _, e := range edits {
			i := 0
			if s.isShared(e) {
				i = 1
			}
			both[i] = append(both[i], e)
		}
		if len(both[1]) > 0 {
			if err := s.commitShared(sh, both[1]); err != nil {
				return err
			}
		}
		if edits = both[0]; len(edits) == 0 {
			return nil
		}
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, e := range edits {
			b := tx.Bucket([]byte(e.bucket))
			if e.value == nil {
				if err := b.Delete([]byte(e.key)); err != nil {
					return err
				}
				continue
			}
			v, err := json.Marshal(e.value)
			if err != nil {
				return err
			}
			if err := b.Put([]byte(e.key), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fault.Wrap(fault.Failed, err, "cannot write the control state; is its filesystem full or read-only?")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range edits {
		switch v := e.value.(type) {
		case Pool:
			s.pools[e.key] = v
		case Target:
			s.targets[e.key] = v
		case Initiator:
			s.initiators[e.key] = v
		case Mapping:
			s.mappings[e.key] = v
		case nil:
			s.forget(e.bucket, e.key)
		}
	}
	return nil
}

// forget takes a key out of memory. Under mu.
func (s *State) forget(bucket, key string) {
	switch bucket {
	case bucketPools:
		delete(s.pools, key)
	case bucketTargets:
		delete(s.targets, key)
	case bucketInitiators:
		delete(s.initiators, key)
	case bucketMappings:
		delete(s.mappings, key)
	}
}

// PutPool stores a pool under its identifier.
func (s *State) PutPool(p Pool) error { return s.commit(edit{bucketPools, p.ID, p}) }

// DeletePool forgets a pool.
func (s *State) DeletePool(id string) error { return s.commit(edit{bucketPools, id, nil}) }

// Pools lists the pools by name.
func (s *State) Pools() []Pool {
	return list(s, s.pools, func(a, b Pool) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
}

// Pool returns a pool by its identifier.
func (s *State) Pool(id string) (Pool, bool) { return get(s, s.pools, id) }

// PutTarget stores a target under its name, which is normalised.
func (s *State) PutTarget(t Target) error { return s.commit(edit{bucketTargets, t.Name, t}) }

// DeleteTarget forgets a target.
func (s *State) DeleteTarget(name string) error { return s.commit(edit{bucketTargets, name, nil}) }

// Targets lists the targets by name.
func (s *State) Targets() []Target {
	return list(s, s.targets, func(a, b Target) int { return cmp.Compare(a.Name, b.Name) })
}

// Target returns a target by its normalised name.
func (s *State) Target(name string) (Target, bool) { return get(s, s.targets, name) }

// Initiators lists the initiators by name.
func (s *State) Initiators() []Initiator {
	return list(s, s.initiators, func(a, b Initiator) int { return cmp.Compare(a.Name, b.Name) })
}

// Initiator returns an initiator by its normalised name.
func (s *State) Initiator(name string) (Initiator, bool) { return get(s, s.initiators, name) }

// Members lists the names of a group's initiators; empty when there is no
// such group. A group exists as long as it has a member.
func (s *State) Members(group string) []string {
	var names []string
	for _, i := range s.Initiators() {
		if i.Group == group && group != "" {
			names = append(names, i.Name)
		}
	}
	return names
}

// PutMappings stores mappings, all or none.
func (s *State) PutMappings(all ...Mapping) error {
	edits := make([]edit, len(all))
	for i, m := range all {
		edits[i] = edit{bucketMappings, m.key(), m}
	}
	return s.commit(edits...)
}

// DeleteMappings forgets mappings, all or none.
func (s *State) DeleteMappings(all ...Mapping) error {
	edits := make([]edit, len(all))
	for i, m := range all {
		edits[i] = edit{bucketMappings, m.key(), nil}
	}
	return s.commit(edits...)
}

// Mappings lists the mappings that match (nil: all), by target, initiator and
// number.
func (s *State) Mappings(match func(Mapping) bool) []Mapping {
	all := list(s, s.mappings, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.LUN, b.LUN))
	})
	if match == nil {
		return all
	}
	return slices.DeleteFunc(all, func(m Mapping) bool { return !match(m) })
}

// View returns what each initiator sees through a target: groups are replaced
// by their members, and an initiator with nothing is left out.
func (s *State) View(target string) map[string][]Mapping {
	view := map[string][]Mapping{}
	for _, m := range s.Mappings(func(m Mapping) bool { return m.Target == target }) {
		for _, name := range s.Resolve(m.Initiator) {
			view[name] = append(view[name], m)
		}
	}
	return view
}

// Resolve returns the initiators that a mapping's name stands for.
func (s *State) Resolve(name string) []string {
	if _, ok := s.Initiator(name); ok {
		return []string{name}
	}
	return s.Members(name)
}

// Conflict checks that no initiator would see two volumes under one number or
// one volume twice, if its mappings through a target were these. Fails with
// fault.Exists.
func Conflict(initiator string, seen []Mapping) error {
	luns, volumes := map[uint16]Mapping{}, map[string]Mapping{}
	for _, m := range seen {
		if o, twice := luns[m.LUN]; twice {
			return fault.New(fault.Exists, "initiator %s would see both volume %q (mapped to %s) and volume %q (mapped to %s) as LUN %d of %s; choose another --lun or leave it out",
				initiator, o.VolumeName, o.Initiator, m.VolumeName, m.Initiator, m.LUN, m.Target)
		}
		if o, twice := volumes[m.Volume]; twice {
			return fault.New(fault.Exists, "initiator %s sees volume %q already, as LUN %d of %s (mapped to %s); unmap that first",
				initiator, m.VolumeName, o.LUN, m.Target, o.Initiator)
		}
		luns[m.LUN], volumes[m.Volume] = m, m
	}
	return nil
}

func list[T any](s *State, m map[string]T, order func(a, b T) int) []T {
	s.mu.RLock()
	all := slices.Collect(maps.Values(m))
	s.mu.RUnlock()
	slices.SortFunc(all, order)
	return all
}

func get[T any](s *State, m map[string]T, key string) (T, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := m[key]
	return v, ok
}

// randomHex returns n random bytes in hex.
func randomHex(n int) (string, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return "", fault.Wrap(fault.Internal, err, "no random bytes")
	}
	return hex.EncodeToString(b), nil
}
