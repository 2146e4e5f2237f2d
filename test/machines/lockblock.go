package main

import (
	"context"
	"net"

	"steadfast/compute/vmhome/lockread"
	"steadfast/node"
)

// newLockReader finds the machine's lock block. It asks from the box of the witness, which nobody
// hurts.
func (s *site) newLockReader(ctx context.Context) (*lockread.Reader, error) {
	g, err := s.whole(ctx)
	if err != nil {
		return nil, err
	}
	auth, err := node.AccessOf(s.nodes[boxB].Data())
	if err != nil {
		return nil, err
	}
	space := s.world.spaces[boxW]
	return lockread.Open(ctx, lockread.Options{
		Target: g.Target, Portal: aliasAddress + ":3260", Auth: auth, Tag: 'm',
		Dial: func(ctx context.Context, address string) (conn net.Conn, err error) {
			err = space.Do(func() (err error) {
				conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		},
	})
}
