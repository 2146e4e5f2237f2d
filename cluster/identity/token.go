package identity

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"log/slog"
	"strings"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Token entitles its bearer to join, once. Its text form is
//
//	steadfast-join-1.<base64url of>
//	16 bytes   cluster
//	32 bytes   fingerprint of the authority's public key
//	16 bytes   secret
//	 n bytes   address
//	 4 bytes   CRC-32C of the above: a token cut short is told from a wrong one
type Token struct {
	cluster [16]byte
	ca      [32]byte
	secret  [16]byte
	address string
}

const (
	tokenPrefix     = "steadfast-join-1."
	tokenFixed      = 16 + 32 + 16
	addressBytesMax = 255
)

// NewToken makes a token for a joiner that will ask at address, a member's that
// Signs. It is good for nothing before the quorum has its Hash.
func (i *Identity) NewToken(address string) (Token, error) {
	var t Token
	cluster, err := hex.DecodeString(i.cluster)
	if err != nil || len(cluster) != len(t.cluster) {
		return t, fault.New(fault.Corrupt, "the cluster's identifier is damaged")
	}
	if address == "" || len(address) > addressBytesMax {
		return t, fault.New(fault.Invalid, "a token needs an address")
	}
	ca, err := hex.DecodeString(string(fingerprint(i.ca)))
	if err != nil {
		return t, err
	}
	copy(t.cluster[:], cluster)
	copy(t.ca[:], ca)
	_, _ = rand.Read(t.secret[:]) // never fails
	t.address = address
	return t, nil
}

// Hash is what the quorum knows of the token.
func (t Token) Hash() quorum.Fingerprint { return hash(t.secret[:]) }

// Address returns where the joiner will ask.
func (t Token) Address() string { return t.address }

// Cluster returns the cluster's identifier.
func (t Token) Cluster() string { return hex.EncodeToString(t.cluster[:]) }

// Encode returns the text form. It holds the secret.
func (t Token) Encode() string {
	p := make([]byte, 0, tokenFixed+len(t.address)+4)
	p = append(p, t.cluster[:]...)
	p = append(p, t.ca[:]...)
	p = append(p, t.secret[:]...)
	p = append(p, t.address...)
	p = binary.BigEndian.AppendUint32(p, crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(p)
}

// ParseToken reverses Encode. Fails with fault.Invalid; the error does not hold
// the text.
func ParseToken(text string) (Token, error) {
	var t Token
	// A terminal or a mail may have broken it into lines.
	body, ok := strings.CutPrefix(strings.Join(strings.Fields(text), ""), tokenPrefix)
	if !ok {
		return t, fault.New(fault.Invalid, "a join token begins with %s", tokenPrefix)
	}
	p, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(p) < tokenFixed+1+4 || len(p) > tokenFixed+addressBytesMax+4 {
		return t, fault.New(fault.Invalid, "the join token is cut short or altered")
	}
	p, sum := p[:len(p)-4], binary.BigEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return t, fault.New(fault.Invalid, "the join token is cut short or altered")
	}
	copy(t.cluster[:], p)
	copy(t.ca[:], p[16:])
	copy(t.secret[:], p[48:])
	t.address = string(p[tokenFixed:])
	return t, nil
}

// String hides the secret; Encode does not.
func (t Token) String() string {
	return "token " + string(t.Hash()[:8]) + " for cluster " + t.Cluster() + " at " + t.address
}

// GoString hides the secret.
func (t Token) GoString() string { return t.String() }

// LogValue hides the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }
