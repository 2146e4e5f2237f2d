package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"steadfast/fault"
)

// memberKey returns the key that a joiner has from an earlier try, or makes and
// keeps one. With fresh it always makes one.
func memberKey(dir string, fresh bool) (ed25519.PrivateKey, error) {
	if !fresh {
		key, err := readKey(dir, fileMemberKey)
		if !fault.Is(err, fault.NotFound) {
			return key, err
		}
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, writeKey(dir, fileMemberKey, key)
}

func writeKey(dir, name string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fault.Wrap(fault.Internal, err, name)
	}
	return writePEM(dir, name, "PRIVATE KEY", der, 0o600)
}

// writePEM replaces a file as a whole, durably: after a crash there is the old
// one or the new one. It has its mode before it has its content.
func writePEM(dir, name, kind string, der []byte, mode fs.FileMode) (err error) {
	defer func() { err = fault.Wrap(fault.Failed, err, "keep "+name) }()
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readPEM(dir, name, kind string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no %s in %s", name, dir)
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, name)
	}
	b, rest := pem.Decode(text)
	if b == nil || b.Type != kind || len(rest) > 0 {
		return nil, fault.New(fault.Corrupt, "%s in %s is damaged", name, dir)
	}
	return b.Bytes, nil
}

func readCertificate(dir, name string) (*x509.Certificate, error) {
	der, err := readPEM(dir, name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, fault.Wrap(fault.Corrupt, err, name)
}

func readKey(dir, name string) (ed25519.PrivateKey, error) {
	der, err := readPEM(dir, name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	return parseKey(der, name)
}

func parseKey(der []byte, name string) (ed25519.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, name)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Corrupt, "%s is of another kind", name)
	}
	return key, nil
}
