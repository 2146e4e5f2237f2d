package identity

import (
	"crypto/tls"
	"slices"

	"steadfast/fault"
)

// What a connection is for, by ALPN (RFC 7301): the number is the version of
// what is spoken. Members may have more, by Server and Client.
const (
	ProtoPeer = "steadfast-quorum/1"
	ProtoJoin = "steadfast-join/1"
)

// Server returns the TLS of a member's listener. A member must show a
// certificate of this cluster that check, which asks the quorum's state,
// accepts, for ProtoPeer and for each of more. A joiner shows a key that nobody
// knows yet: it is let in as far as Serve, when the member Signs.
func (i *Identity) Server(check func(Peer) error, more ...string) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.cert},
		// Full records from the first byte: a mirror's writes are large.
		DynamicRecordSizingDisabled: true,
		// A resumed session would carry an old proof; handshakes are rare.
		SessionTicketsDisabled: true,
	}
	// The chain is verified in VerifyConnection and not by crypto/tls, whose way
	// depends on the clock. Either way the handshake proves the key.
	peer := base.Clone()
	peer.NextProtos, peer.ClientAuth = append([]string{ProtoPeer}, more...), tls.RequireAnyClientCert
	peer.VerifyConnection = i.verifier(check, peer.NextProtos)
	join := base.Clone()
	join.NextProtos, join.ClientAuth = []string{ProtoJoin}, tls.RequireAnyClientCert
	base.NextProtos = append(slices.Clone(peer.NextProtos), ProtoJoin)
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(peer.NextProtos, p) }):
			return peer, nil
		case slices.Contains(hello.SupportedProtos, ProtoJoin) && i.Signs():
			return join, nil
		}
		return nil, fault.New(fault.Denied, "it speaks none of what this member answers to: %q", hello.SupportedProtos)
	}
	return base
}

// Client returns the TLS of a connection to a member for proto, ProtoPeer or
// another that it serves. The member must be who check accepts.
func (i *Identity) Client(proto string, check func(Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, DynamicRecordSizingDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &i.cert, nil },
		// Members are known by key and name, not by host name: verifier does all of
		// what is skipped here.
		InsecureSkipVerify: true,
		VerifyConnection:   i.verifier(check, []string{proto}),
	}
}

func (i *Identity) verifier(check func(Peer) error, protos []string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		p, err := i.PeerOf(s)
		if err != nil {
			return err
		}
		if !slices.Contains(protos, s.NegotiatedProtocol) {
			return fault.New(fault.Denied, "member %s speaks %q", p.Name, s.NegotiatedProtocol)
		}
		return check(p)
	}
}

// PeerOf says who is at the other end.
func (i *Identity) PeerOf(s tls.ConnectionState) (Peer, error) { return i.peer(s.PeerCertificates) }
