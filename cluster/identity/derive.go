package identity

import (
	"crypto/hkdf"
	"crypto/sha256"

	"steadfast/fault"
)

// DerivedKey returns a key of 32 bytes that all storage nodes of the cluster
// have and nobody else, the witness included: it comes of the authority's key
// and of purpose, by HKDF-SHA256 (RFC 5869). Fails with fault.Denied at a member
// that does not have the authority's key.
func (i *Identity) DerivedKey(purpose string) ([]byte, error) {
	if !i.Signs() {
		return nil, fault.New(fault.Denied, "a witness has no key of the storage nodes")
	}
	return hkdf.Key(sha256.New, i.caKey.Seed(), []byte(i.cluster), purpose, 32)
}
