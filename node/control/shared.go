package control

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"

	bolt "go.etcd.io/bbolt"

	"steadfast/fault"
)

// A node of a cluster shares what belongs to no node alone: every initiator, and
// the mappings of mirrored volumes. They lie in the cluster's inventory, under
// these prefixes, and are held in memory here like the node's own.
const (
	sharedInitiator = "initiator/"
	sharedMapping   = "mapping/"
)

// sealedPrefix begins a secret that is in the record itself, encrypted.
const sealedPrefix = "sealed:"

// Inventory is where shared records lie. Both methods may be called from any
// goroutine.
type Inventory interface {
	// Edit changes entries, all or none; nil deletes one. It is about Entries as
	// they were at the last Adopt, and fails with fault.Busy when somebody else
	// has changed them since.
	Edit(edits map[string][]byte) error
	// Entries returns what there is now, after the last Edit.
	Entries() map[string][]byte
}

// shared joins a state to an inventory.
type shared struct {
	Inventory
	aead cipher.AEAD
}

// Share has the state keep shared records in the inventory from now on; key, of
// 32 bytes, is the cluster's for secrets.
func (s *State) Share(inv Inventory, key []byte) error {
	block, err := aes.NewCipher(key)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the cluster's key")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the cluster's key")
	}
	s.mu.Lock()
	s.shared = &shared{inv, aead}
	s.mu.Unlock()
	return s.Adopt(inv.Entries())
}

// Give shares as Share does, for a node that has just become a member: the
// initiators that it has of its own are entered in the inventory, unless they
// are there, and forgotten here.
func (s *State) Give(inv Inventory, key []byte) error {
	own := s.Initiators()
	if err := s.Share(inv, key); err != nil {
		return err
	}
	entries, edits := inv.Entries(), map[string][]byte{}
	for _, i := range own {
		if entries[initiatorKey(i.Name)] != nil {
			continue
		}
		err := s.sealOwn(&i)
		if err == nil {
			edits[initiatorKey(i.Name)], err = json.Marshal(i)
		}
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "initiator "+i.Name)
		}
	}
	if len(edits) > 0 {
		if err := inv.Edit(edits); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "this node's initiators cannot be given to the cluster")
		}
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, i := range own {
			if err := tx.Bucket([]byte(bucketInitiators)).Delete([]byte(i.Name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fault.Wrap(fault.Failed, err, "cannot write the control state")
	}
	return s.Adopt(inv.Entries())
}

// Unshare ends Share for a node that leaves its cluster: it keeps the initiators
// as its own, with their secrets; mappings of mirrored volumes are no more.
func (s *State) Unshare() error {
	if s.sharing() == nil {
		return nil
	}
	all := s.Initiators()
	type secrets struct{ chap, mutual Secret }
	kept := make([]secrets, len(all))
	for i := range all {
		var err error
		if kept[i].chap, kept[i].mutual, err = s.Secrets(all[i]); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.shared = nil
	clear(s.initiators)
	for key, m := range s.mappings {
		if m.Group != "" {
			delete(s.mappings, key)
		}
	}
	s.mu.Unlock()
	for i := range all {
		err := s.PutInitiator(all[i], SecretChange{len(kept[i].chap) > 0, kept[i].chap}, SecretChange{len(kept[i].mutual) > 0, kept[i].mutual})
		if err != nil {
			return err
		}
	}
	return nil
}

// sealOwn moves an initiator's secrets from files into its record.
func (s *State) sealOwn(i *Initiator) error {
	chap, mutual, err := s.Secrets(*i)
	if err != nil {
		return err
	}
	for ref, secret := range map[*string]Secret{&i.ChapSecret: chap, &i.MutualSecret: mutual} {
		if *ref == "" {
			continue
		}
		if *ref, err = s.seal(secret); err != nil {
			return err
		}
	}
	return nil
}

// Adopt takes in what the inventory holds now.
func (s *State) Adopt(entries map[string][]byte) error {
	initiators, mappings := map[string]Initiator{}, map[string]Mapping{}
	var errs []error
	for key, value := range entries {
		switch {
		case strings.HasPrefix(key, sharedInitiator):
			var i Initiator
			errs = append(errs, json.Unmarshal(value, &i))
			initiators[i.Name] = i
		case strings.HasPrefix(key, sharedMapping):
			var m Mapping
			errs = append(errs, json.Unmarshal(value, &m))
			mappings[m.key()] = m
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(fault.Stale, err, "the cluster's inventory was written by a newer program")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.initiators = initiators
	for key, m := range s.mappings {
		if m.Group != "" {
			delete(s.mappings, key)
		}
	}
	for key, m := range mappings {
		s.mappings[key] = m
	}
	return nil
}

// SameShared tells whether two states of the inventory hold the same shared
// records.
func SameShared(a, b map[string][]byte) bool {
	return includes(a, b) && includes(b, a)
}

// includes tells whether every shared record of a is in b.
func includes(a, b map[string][]byte) bool {
	for key, value := range a {
		if (strings.HasPrefix(key, sharedInitiator) || strings.HasPrefix(key, sharedMapping)) && !bytes.Equal(value, b[key]) {
			return false
		}
	}
	return true
}

// sharing returns what the state shares by, or nil.
func (s *State) sharing() *shared {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.shared
}

// isShared tells whether an edit is one of the inventory.
func (s *State) isShared(e edit) bool {
	if e.bucket == bucketInitiators {
		return true
	}
	if e.bucket != bucketMappings {
		return false
	}
	m, ok := e.value.(Mapping)
	if !ok {
		m, _ = get(s, s.mappings, e.key)
	}
	return m.Group != ""
}

// commitShared makes edits of the inventory, and then visible here.
func (s *State) commitShared(sh *shared, edits []edit) error {
	out := map[string][]byte{}
	for _, e := range edits {
		key := initiatorKey(e.key)
		if e.bucket == bucketMappings {
			key = mappingKey(e.key)
		}
		out[key] = nil
		if e.value == nil {
			continue
		}
		v, err := json.Marshal(e.value)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "a record")
		}
		out[key] = v
	}
	if err := sh.Edit(out); err != nil {
		return err
	}
	return s.Adopt(sh.Entries())
}

func initiatorKey(name string) string { return sharedInitiator + name }

// mappingKey shortens a mapping's key, which is longer than the inventory's may
// be, to its hash.
func mappingKey(key string) string {
	h := sha256.Sum256([]byte(key))
	return sharedMapping + hex.EncodeToString(h[:16])
}

// seal encrypts a secret into a reference that holds it.
func (s *State) seal(secret Secret) (string, error) {
	sh := s.sharing()
	nonce := make([]byte, sh.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return "", fault.Wrap(fault.Internal, err, "no random bytes")
	}
	return sealedPrefix + base64.StdEncoding.EncodeToString(sh.aead.Seal(nonce, nonce, secret, nil)), nil
}

// unseal reads a secret that seal encrypted.
func (s *State) unseal(ref string) (Secret, error) {
	sh := s.sharing()
	if sh == nil {
		return nil, fault.New(fault.Denied, "the secret is the cluster's, and this node is in none")
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(ref, sealedPrefix))
	if err != nil || len(b) < sh.aead.NonceSize() {
		return nil, fault.New(fault.Corrupt, "the secret is damaged")
	}
	n := sh.aead.NonceSize()
	secret, err := sh.aead.Open(nil, b[:n], b[n:], nil)
	return secret, fault.Wrap(fault.Corrupt, err, "the secret is damaged")
}
