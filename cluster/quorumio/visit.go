package quorumio

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Visit connects to a member for a protocol that it serves, with a member's
// identity but without running one: for who speaks in the place of a member that
// has ended. boot is that member's life, r whom to visit. The connection is the
// caller's to close. Fails with fault.Unreachable and fault.Denied.
func Visit(ctx context.Context, id *identity.Identity, boot quorum.Boot, r quorum.Record, proto string) (*tls.Conn, error) {
	raw, err := dialTCP(ctx, r.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "member "+string(r.Name))
	}
	conn := tls.Client(raw, id.Client(proto, func(p identity.Peer) error {
		if p.ID != r.ID || p.Name != r.Name || p.Key != r.Key {
			return fault.New(fault.Denied, "at %s is %s, number %d, and not %s, number %d", r.Address, p.Name, p.ID, r.Name, r.ID)
		}
		return nil
	}))
	err = raw.SetDeadline(time.Now().Add(writeTime))
	if err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err == nil {
		err = visitorHello(conn, boot, r)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Unreachable, err, "member "+string(r.Name)), raw.Close())
	}
	return conn, nil
}

// visitorHello exchanges hellos. It gives no address: nobody is reached there.
func visitorHello(conn *tls.Conn, boot quorum.Boot, r quorum.Record) error {
	if err := writeHello(conn, frameHello, hello{To: r.ID, Boot: boot}); err != nil {
		return err
	}
	answer, err := readHello(conn, frameWelcome)
	if err != nil {
		return err
	}
	if answer.Refused != "" {
		return fault.New(fault.Denied, "member %s refuses: %s", r.Name, answer.Refused)
	}
	return conn.SetDeadline(time.Time{})
}
