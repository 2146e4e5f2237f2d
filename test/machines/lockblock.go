package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"steadfast/cluster/identity"
	"steadfast/compute/initiator"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/iscsi"
	"steadfast/test/testbed"
)

// lockReader reads the machine's lock block from its home volume, as the storage has it: a nexus
// of its own, which only reads. It comes in by a storage node's name and proof: a node reaches the
// volumes of datastores, to write into machines what people give it, and holds nothing there.
type lockReader struct {
	space *testbed.Space
	cfg   initiator.Config
}

const (
	// lockPatience bounds one reading, lunPatience looking whether it is this volume.
	lockPatience = 15 * time.Second
	lunPatience  = time.Second
	// lunsTried is how many volumes the group may have had before the machine's home.
	lunsTried = 16
)

// newLockReader finds the home volume.
func (s *site) newLockReader(ctx context.Context) (*lockReader, error) {
	g, err := s.whole(ctx)
	if err != nil {
		return nil, err
	}
	auth, err := accessOf(s.nodes[boxB])
	if err != nil {
		return nil, err
	}
	// It asks from the box of the witness, which nobody hurts.
	r := &lockReader{space: s.world.spaces[boxW]}
	r.cfg = initiator.Config{
		Initiator: auth.Name, ISID: iscsi.ISID{0x80, 'l', 'o', 'c', 'k', 1}, Target: g.Target, Portals: []string{aliasAddress + ":3260"},
		Auth: iscsi.Auth{In: auth}, Log: slog.New(slog.DiscardHandler), Dial: r.dial,
		Times: initiator.Times{Missing: 100 * time.Millisecond, Logout: 100 * time.Millisecond},
	}
	for r.cfg.LUN = range lunsTried {
		_, e := r.once(ctx, lunPatience)
		if e == nil {
			return r, nil
		}
		err = errors.Join(err, fmt.Errorf("LUN %d: %w", r.cfg.LUN, e))
	}
	return nil, fmt.Errorf("no volume has a lock block: %w", err)
}

// accessOf is what a storage node proves to another: of the cluster's key, which it has, and of who it
// is. See node/reach_access.go.
func accessOf(node *testbed.Daemon) (*iscsi.Credentials, error) {
	id, err := identity.Load(filepath.Join(node.Data(), "cluster"))
	if err != nil {
		return nil, err
	}
	key, err := id.DerivedKey("steadfast host access 1")
	if err != nil {
		return nil, err
	}
	me := id.Self()
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(string(me.Name) + "\x00" + strconv.FormatUint(me.ID, 10) + "\x00" + string(me.Key))) // it never fails
	return &iscsi.Credentials{
		Name:   "iqn.2026-11.io.steadfast:" + id.Cluster()[:16] + ":member:" + string(me.Name),
		Secret: []byte(base64.RawURLEncoding.EncodeToString(h.Sum(nil))),
	}, nil
}

// dial connects from where the reader is.
func (r *lockReader) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	err = r.space.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// read reads the lock block; a storage that is being taken over is waited for.
func (r *lockReader) read(ctx context.Context) (vmlock.Block, error) {
	b, err := r.once(ctx, lockPatience)
	if err != nil {
		return b, fmt.Errorf("the lock block cannot be read: %w", err)
	}
	return b, nil
}

func (r *lockReader) once(ctx context.Context, patience time.Duration) (b vmlock.Block, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d, err := initiator.Open(ctx, r.cfg)
	if err != nil {
		return b, err
	}
	b, err = vmhome.ReadLock(d)
	return b, errors.Join(err, d.Close())
}

// newer tells whether a lock block came after another.
func newer(a, b vmlock.Block) bool {
	return a.Generation > b.Generation || a.Generation == b.Generation && a.Turn > b.Turn
}
