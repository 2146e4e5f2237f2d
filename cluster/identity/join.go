package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// messageBytesMax bounds a request and an answer.
const messageBytesMax = 256 << 10

// joinTime bounds a handshake and the question; the quorum's decision is within.
const joinTime = 20 * time.Second

// Applicant is who asks to join, with a key that the handshake has proven.
type Applicant struct {
	Name    quorum.Member
	Address string
	Key     quorum.Fingerprint
	Token   quorum.Fingerprint // hash of the secret it showed
	Role    quorum.Role        // what it is there for; empty: whatever the token says
}

// Admission is the quorum's answer to an applicant.
type Admission struct {
	Record  quorum.Record
	Boot    quorum.Boot     // its lives begin after this one
	Members []quorum.Record // everyone, itself too
}

// request and answer are the two messages of joining.
type request struct {
	Cluster string        `json:"cluster"`
	Secret  []byte        `json:"secret"`
	Name    quorum.Member `json:"name"`
	Address string        `json:"address"`
	Role    quorum.Role   `json:"role,omitempty"`
}

type answer struct {
	Kind  string `json:"kind,omitempty"` // of a refusal
	Error string `json:"error,omitempty"`

	Admission
	Cert  []byte `json:"cert,omitempty"`
	CAKey []byte `json:"ca_key,omitempty"`
}

// Joined is a membership that is not kept yet.
type Joined struct {
	Admission
	dir   string
	ca    *x509.Certificate
	cert  []byte
	caKey ed25519.PrivateKey
}

// Keep stores the identity in the directory that Join was called with. What the
// caller must have before it may start is stored before: without Keep, Join can
// be called again.
func (j *Joined) Keep() (*Identity, error) { return keep(j.dir, j.ca.Raw, j.cert, j.caKey) }

// Join asks the member that the token names to be admitted as name, at address. A
// role that is not empty must be the token's, or it is fault.Invalid and the token
// stays good. Fails with fault.Exists when the directory holds a member,
// fault.Unreachable when nobody answers, fault.Denied when who answers is not of
// the token's cluster, and with what the quorum refused it with.
func Join(ctx context.Context, dir string, t Token, name quorum.Member, address string, role quorum.Role) (*Joined, error) {
	if err := vacant(dir); err != nil {
		return nil, err
	}
	key, err := memberKey(dir, false)
	if err != nil {
		return nil, err
	}
	own, err := selfSigned(key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var ca *x509.Certificate
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtoJoin}, Certificates: []tls.Certificate{own},
		// The authority is known by its fingerprint only: see VerifyConnection.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			ca, err = t.authorityOf(s.PeerCertificates)
			return err
		},
	}}
	conn, err := d.DialContext(ctx, "tcp", t.address)
	if err != nil {
		if fault.KindOf(err) == fault.Denied {
			return nil, err
		}
		return nil, fault.Wrap(fault.Unreachable, err, "the member that the token names")
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	a, err := ask(conn, request{Cluster: t.Cluster(), Secret: t.secret[:], Name: name, Address: address, Role: role})
	if err != nil {
		return nil, err
	}
	return accept(dir, a, ca, key, name)
}

// authorityOf finds the token's authority in a chain and holds the chain to it.
func (t Token) authorityOf(chain []*x509.Certificate) (*x509.Certificate, error) {
	for _, c := range chain {
		if fingerprint(c) == quorum.Fingerprint(hex.EncodeToString(t.ca[:])) {
			_, err := verify(c, t.Cluster(), chain[0])
			return c, err
		}
	}
	return nil, fault.New(fault.Denied, "who answers at %s is not of the token's cluster", t.address)
}

// ask sends the request and returns the answer, or the refusal as an error.
func ask(conn io.ReadWriter, r request) (answer, error) {
	var a answer
	if err := writeMessage(conn, r); err != nil {
		return a, fault.Wrap(fault.Unreachable, err, "ask to join")
	}
	if err := readMessage(conn, &a); err != nil {
		return a, fault.Wrap(fault.Unreachable, err, "no answer to the request to join; ask again with the same token")
	}
	if a.Error != "" {
		for _, k := range fault.Kinds() {
			if k.String() == a.Kind {
				return a, fault.New(k, "%s", a.Error)
			}
		}
		return a, fault.New(fault.Internal, "%s", a.Error)
	}
	return a, nil
}

// accept checks what came before anything is kept of it.
func accept(dir string, a answer, ca *x509.Certificate, key ed25519.PrivateKey, name quorum.Member) (*Joined, error) {
	cert, err := x509.ParseCertificate(a.Cert)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the certificate that came")
	}
	j := &Joined{Admission: a.Admission, dir: dir, ca: ca, cert: cert.Raw}
	if a.CAKey != nil {
		if j.caKey, err = parseKey(a.CAKey, "the authority's key that came"); err != nil {
			return nil, err
		}
	}
	i, err := assemble(ca, cert, key, j.caKey)
	if err != nil {
		return nil, err
	}
	if i.self.Name != name || a.Record.Name != name || i.self.ID != a.Record.ID || i.self.Key != a.Record.Key {
		return nil, fault.New(fault.Corrupt, "the certificate that came is of %s, number %d", i.self.Name, i.self.ID)
	}
	return j, nil
}

// Serve answers one joiner, on a connection that came by ProtoJoin. The caller
// bounds the time. admit has the quorum decide; it is asked again when a joiner
// asks again.
func (i *Identity) Serve(conn *tls.Conn, admit func(Applicant) (Admission, error)) error {
	var r request
	if err := readMessage(conn, &r); err != nil {
		return fault.Wrap(fault.Unreachable, err, "a joiner's request")
	}
	a, err := i.admit(conn.ConnectionState(), r, admit)
	if err != nil {
		a = answer{Kind: fault.KindOf(err).String(), Error: err.Error()}
	}
	if werr := writeMessage(conn, a); werr != nil && err == nil {
		return fault.Wrap(fault.Unreachable, werr, "the answer to a joiner")
	}
	return err
}

func (i *Identity) admit(s tls.ConnectionState, r request, admit func(Applicant) (Admission, error)) (a answer, err error) {
	switch {
	case len(s.PeerCertificates) == 0:
		return a, fault.New(fault.Denied, "a joiner shows no key")
	case r.Cluster != i.cluster:
		return a, fault.New(fault.Denied, "the token is for another cluster")
	case !i.Signs():
		return a, fault.New(fault.Denied, "this member has not the authority's key: join at a storage node")
	}
	c := s.PeerCertificates[0]
	if _, ok := c.PublicKey.(ed25519.PublicKey); !ok {
		return a, fault.New(fault.Invalid, "a joiner's key is not Ed25519")
	}
	a.Admission, err = admit(Applicant{Name: r.Name, Address: r.Address, Key: fingerprint(c), Token: hash(r.Secret), Role: r.Role})
	if err != nil {
		return a, err
	}
	if a.Cert, err = i.sign(c.PublicKey, a.Record.Name, a.Record.ID); err != nil {
		return a, err
	}
	if a.Record.Role == quorum.RoleNode {
		a.CAKey, err = x509.MarshalPKCS8PrivateKey(i.caKey)
	}
	return a, fault.Wrap(fault.Internal, err, "the authority's key")
}

// selfSigned wraps a key for a handshake that is to prove it.
func selfSigned(key ed25519.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{SerialNumber: serial()}
	validity(t)
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, fault.Wrap(fault.Internal, err, "a joiner's certificate")
}

// A message is four bytes of length, big-endian, and JSON.
func writeMessage(w io.Writer, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(p) > messageBytesMax {
		return fault.New(fault.Limit, "a message of %d bytes", len(p))
	}
	bufs := net.Buffers{binary.BigEndian.AppendUint32(nil, uint32(len(p))), p}
	_, err = bufs.WriteTo(w)
	return err
}

func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > messageBytesMax {
		return fault.New(fault.Invalid, "a message of %d bytes", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	return fault.Wrap(fault.Invalid, json.Unmarshal(p, v), "a message")
}
