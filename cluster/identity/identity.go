// Package identity is how a member of the cluster proves who it is: the
// cluster's own certificate authority, a certificate per member, one-time join
// tokens, and the TLS that the members speak with one another.
//
// # What is trusted
//
// A certificate of this authority says: this key is the member of that name and
// number. It says nothing about whether that member still is one: who uses a
// certificate asks the quorum's state as well (the check given to Server and
// Client). So a member is shut out by a decision of the quorum, not by a list of
// revoked certificates, and a certificate has no expiry: a node whose clock is
// wrong must not fall out of the quorum, which is what keeps data safe.
//
// The authority's key is on every storage node, so that a node can be replaced
// when any other is left; it is not on a witness, which is a small box somewhere.
// Who has that key can make certificates, but enters nobody in the quorum's
// state: the key alone makes no member. A node that was thrown out still has it;
// see cluster/quorumio for the one moment in which that matters.
//
// # Joining
//
//	           token: cluster, address, the authority's fingerprint, secret
//	joiner  --------------------------------------------------------------  node
//	makes a key, keeps it
//	TLS 1.3, its key in a certificate of its own   -->
//	                                   <--  the node's chain; the joiner holds the
//	                                        authority in it to the fingerprint
//	secret, name, address              -->
//	                                        the quorum spends the token and enters
//	                                        name, address and key, in one decision
//	                                   <--  certificate, members; for a node the
//	                                        authority's key
//	keeps them, the certificate last
//
// The secret goes to nobody but who has the authority's key. A joiner that dies
// between has its key still, and may ask again with the same token: the token is
// bound to that key from then on, and useless to others.
//
// A directory holds ca.crt, ca.key (nodes), member.crt and member.key. Keys have
// mode 0600; no error and no log line of this package holds a secret.
package identity

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Files of a directory.
const (
	fileCA        = "ca.crt"
	fileCAKey     = "ca.key"
	fileMember    = "member.crt"
	fileMemberKey = "member.key"
)

// Peer is what a certificate says.
type Peer struct {
	Name quorum.Member
	ID   uint64
	Key  quorum.Fingerprint
}

// Identity is a member's proof of who it is. It never changes, and may be used
// from any goroutine.
type Identity struct {
	cluster string
	self    Peer
	ca      *x509.Certificate
	caKey   ed25519.PrivateKey // nil on a witness
	cert    tls.Certificate    // chain: the member's, the authority's
}

// Cluster returns the cluster's identifier, 32 hexadecimal digits.
func (i *Identity) Cluster() string { return i.cluster }

// Self returns what the member's own certificate says.
func (i *Identity) Self() Peer { return i.self }

// Signs tells whether the member has the authority's key, and so can admit
// others.
func (i *Identity) Signs() bool { return i.caKey != nil }

// Init makes a cluster: its authority, and the certificate of its first member,
// which has number 1. Fails with fault.Exists when the directory holds a member.
func Init(dir string, name quorum.Member) (*Identity, error) {
	j, _, err := Begin(dir, name)
	if err != nil {
		return nil, err
	}
	return j.Keep()
}

// Begin is Init for a caller that has something to store before there is a member:
// Keep makes it one. Who it will be is known before.
func Begin(dir string, name quorum.Member) (*Joined, Peer, error) {
	if !name.Valid() {
		return nil, Peer{}, fault.New(fault.Invalid, "%q cannot name a member", name)
	}
	if err := vacant(dir); err != nil {
		return nil, Peer{}, err
	}
	j, key, err := found(dir, name)
	if err != nil {
		return nil, Peer{}, err
	}
	cert, err := x509.ParseCertificate(j.cert)
	if err != nil {
		return nil, Peer{}, fault.Wrap(fault.Internal, err, "the first member's certificate")
	}
	i, err := assemble(j.ca, cert, key, j.caKey)
	if err != nil {
		return nil, Peer{}, err
	}
	return j, i.Self(), nil
}

// found makes a cluster's authority and its first member's key and certificate.
func found(dir string, name quorum.Member) (*Joined, ed25519.PrivateKey, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	cluster := hex.EncodeToString(id[:])
	_, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	ca, err := authority(cluster, caKey)
	if err != nil {
		return nil, nil, err
	}
	key, err := memberKey(dir, true)
	if err != nil {
		return nil, nil, err
	}
	signer := &Identity{cluster: cluster, ca: ca, caKey: caKey}
	cert, err := signer.sign(key.Public(), name, 1)
	if err != nil {
		return nil, nil, err
	}
	return &Joined{dir: dir, ca: ca, cert: cert, caKey: caKey}, key, nil
}

// vacant refuses a directory that holds a member, and makes one that is not
// there.
func vacant(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Denied, err, "the member's directory")
	}
	if _, err := os.Stat(filepath.Join(dir, fileMember)); err == nil {
		return fault.New(fault.Exists, "%s holds a member of a cluster already", dir)
	}
	return nil
}

// keep stores what a new member has. The certificate is last: a directory with
// it has everything, one without is begun again.
func keep(dir string, ca, cert []byte, caKey ed25519.PrivateKey) (*Identity, error) {
	if caKey != nil {
		if err := writeKey(dir, fileCAKey, caKey); err != nil {
			return nil, err
		}
	}
	if err := writePEM(dir, fileCA, "CERTIFICATE", ca, 0o644); err != nil {
		return nil, err
	}
	if err := writePEM(dir, fileMember, "CERTIFICATE", cert, 0o644); err != nil {
		return nil, err
	}
	return Load(dir)
}

// Load reads a member's identity. Fails with fault.NotFound when the directory
// holds none, and fault.Corrupt when what it holds does not belong together.
func Load(dir string) (*Identity, error) {
	cert, err := readCertificate(dir, fileMember)
	if err != nil {
		return nil, err
	}
	ca, err := readCertificate(dir, fileCA)
	if err != nil {
		return nil, err
	}
	key, err := readKey(dir, fileMemberKey)
	if err != nil {
		return nil, err
	}
	caKey, err := readKey(dir, fileCAKey)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return assemble(ca, cert, key, caKey)
}

// assemble holds the parts against one another.
func assemble(ca, cert *x509.Certificate, key, caKey ed25519.PrivateKey) (*Identity, error) {
	i := &Identity{ca: ca, caKey: caKey}
	if len(ca.Subject.Organization) == 1 {
		i.cluster = ca.Subject.Organization[0]
	}
	self, err := i.peer([]*x509.Certificate{cert})
	switch {
	case err != nil:
		return nil, fault.Wrap(fault.Corrupt, err, "the member's own certificate")
	case !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey):
		return nil, fault.New(fault.Corrupt, "the member's key is not that of its certificate")
	case caKey != nil && !caKey.Public().(ed25519.PublicKey).Equal(ca.PublicKey):
		return nil, fault.New(fault.Corrupt, "the authority's key is not that of its certificate")
	}
	i.self = self
	i.cert = tls.Certificate{Certificate: [][]byte{cert.Raw, ca.Raw}, PrivateKey: key, Leaf: cert}
	return i, nil
}

// validity is for ever: see the package doc. RFC 5280, 4.1.2.5 has the end.
func validity(t *x509.Certificate) {
	t.NotBefore = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	t.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
}

// authority makes the certificate that is the root of the cluster.
func authority(cluster string, key ed25519.PrivateKey) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{cluster}, CommonName: "steadfast cluster"},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	validity(t)
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the authority's certificate")
	}
	return x509.ParseCertificate(der)
}

// sign makes a member's certificate.
func (i *Identity) sign(key crypto.PublicKey, name quorum.Member, id uint64) ([]byte, error) {
	if i.caKey == nil {
		return nil, fault.New(fault.Denied, "this member has not the authority's key: join at a storage node")
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{Organization: []string{i.cluster}, CommonName: string(name), SerialNumber: strconv.FormatUint(id, 10)},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	validity(t)
	der, err := x509.CreateCertificate(rand.Reader, t, i.ca, key, i.caKey)
	return der, fault.Wrap(fault.Internal, err, "a member's certificate")
}

// peer verifies a chain, whose first certificate is the peer's, and says who it
// is.
func (i *Identity) peer(chain []*x509.Certificate) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, fault.New(fault.Denied, "it shows no certificate")
	}
	return verify(i.ca, i.cluster, chain[0])
}

// verify holds a member's certificate to an authority and a cluster.
func verify(ca *x509.Certificate, cluster string, cert *x509.Certificate) (Peer, error) {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// Clocks do not matter here; see the package doc.
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Peer{}, fault.Wrap(fault.Denied, err, "its certificate is not of this cluster's authority")
	}
	s := cert.Subject
	id, err := strconv.ParseUint(s.SerialNumber, 10, 64)
	name := quorum.Member(s.CommonName)
	if err != nil || id == 0 || !name.Valid() || len(s.Organization) != 1 || s.Organization[0] != cluster || cluster == "" {
		return Peer{}, fault.New(fault.Denied, "its certificate names no member of this cluster: %s", s)
	}
	return Peer{Name: name, ID: id, Key: fingerprint(cert)}, nil
}

// fingerprint is the SHA-256 of a certificate's public key.
func fingerprint(c *x509.Certificate) quorum.Fingerprint { return hash(c.RawSubjectPublicKeyInfo) }

func hash(p []byte) quorum.Fingerprint {
	h := sha256.Sum256(p)
	return quorum.Fingerprint(hex.EncodeToString(h[:]))
}

// serial draws a certificate's serial number. RFC 5280, 4.1.2.2.
func serial() *big.Int {
	var p [16]byte
	_, _ = rand.Read(p[:]) // never fails
	p[0] &= 0x7f
	return new(big.Int).SetBytes(p[:])
}
