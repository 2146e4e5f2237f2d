package control

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"steadfast/fault"
)

// Secret is a CHAP secret on its way to its file. It prints as nothing.
type Secret []byte

// String hides the secret from every format that prints values.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "(secret)" }

// MarshalText is for slog and JSON, which would print the bytes.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// SecretChange says what becomes of one of an initiator's secrets.
type SecretChange struct {
	Set    bool   // change it
	Secret Secret // to this; empty: to none
}

// PutInitiator stores an initiator under its normalised name, with changes to
// its secrets. i's own secret references are ignored: they are taken from
// what is stored and from the changes.
func (s *State) PutInitiator(i Initiator, chap, mutual SecretChange) error {
	old, _ := s.Initiator(i.Name)
	i.ChapSecret, i.MutualSecret = old.ChapSecret, old.MutualSecret
	var obsolete []string
	change := func(ref *string, c SecretChange) error {
		if !c.Set {
			return nil
		}
		if *ref != "" {
			obsolete = append(obsolete, *ref)
		}
		*ref = ""
		if len(c.Secret) == 0 {
			return nil
		}
		var err error
		if s.sharing() != nil {
			*ref, err = s.seal(c.Secret)
		} else {
			*ref, err = s.writeSecret(c.Secret)
		}
		return err
	}
	err := errors.Join(change(&i.ChapSecret, chap), change(&i.MutualSecret, mutual))
	if err == nil {
		err = s.commit(edit{bucketInitiators, i.Name, i})
	}
	if err != nil {
		// New files stay for the next sweep; the state does not name them.
		return err
	}
	return s.deleteSecrets(obsolete...)
}

// DeleteInitiator forgets an initiator and its secrets.
func (s *State) DeleteInitiator(name string) error {
	old, _ := s.Initiator(name)
	if err := s.commit(edit{bucketInitiators, name, nil}); err != nil {
		return err
	}
	return s.deleteSecrets(old.ChapSecret, old.MutualSecret)
}

// Secrets reads an initiator's secrets; nil for none.
func (s *State) Secrets(i Initiator) (chap, mutual Secret, err error) {
	read := func(ref string) Secret {
		if ref == "" {
			return nil
		}
		if strings.HasPrefix(ref, sealedPrefix) {
			b, e := s.unseal(ref)
			err = errors.Join(err, fault.Wrap(fault.KindOf(e), e, "initiator "+i.Name))
			return b
		}
		b, e := os.ReadFile(s.secretPath(ref))
		if e != nil {
			err = fault.Wrap(fault.Failed, e, "initiator "+i.Name+": its CHAP secret cannot be read; set it again with \"steadfast initiator set\"")
		}
		return b
	}
	chap, mutual = read(i.ChapSecret), read(i.MutualSecret)
	return chap, mutual, err
}

func (s *State) secretPath(ref string) string { return filepath.Join(s.dir, "secrets", ref) }

// writeSecret puts a secret into a new file, durably, and returns its name.
func (s *State) writeSecret(secret Secret) (ref string, err error) {
	if ref, err = randomHex(16); err != nil {
		return "", err
	}
	f, err := os.OpenFile(s.secretPath(ref), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(secret)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = syncDir(s.secretPath(""))
	}
	return ref, fault.Wrap(fault.Failed, err, "cannot store the secret")
}

func (s *State) deleteSecrets(refs ...string) error {
	var err error
	for _, ref := range refs {
		if ref == "" || strings.HasPrefix(ref, sealedPrefix) {
			continue
		}
		if e := os.Remove(s.secretPath(ref)); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return fault.Wrap(fault.Failed, err, "the old secret's file cannot be deleted")
}

// sweep deletes secrets that nothing refers to: a crash left them.
func (s *State) sweep() {
	used := map[string]bool{}
	for _, i := range s.initiators {
		used[i.ChapSecret], used[i.MutualSecret] = true, true
	}
	entries, err := os.ReadDir(s.secretPath(""))
	if err != nil {
		return // reading a secret will tell
	}
	for _, e := range entries {
		if !used[e.Name()] {
			// Left behind, it harms nobody and the next start tries again.
			_ = os.Remove(s.secretPath(e.Name()))
		}
	}
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
