package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"steadfast/compute/initiator"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node"
)

// lockReader reads the machine's lock block from its home volume, as the storage has it, by what a
// storage node may: a nexus of its own, which holds nothing there.
type lockReader struct {
	cfg initiator.Config
	vm  string // the machine's identifier
}

const (
	// lockTime bounds one reading; a storage that is being taken over is waited for. lunTime
	// bounds looking whether it is this volume.
	lockTime = 30 * time.Second
	lunTime  = 2 * time.Second
	// lunsTried is how many volumes the group may have had before the machine's home.
	lunsTried = 32
)

// openLock finds the home volume.
func (s site) openLock(ctx context.Context, up running, vm string) (*lockReader, error) {
	auth, err := node.AccessOf(s.path(nodes[0]))
	if err != nil {
		return nil, err
	}
	r := &lockReader{vm: vm, cfg: initiator.Config{
		Initiator: auth.Name, ISID: iscsi.ISID{0x80, 'd', 'e', 'm', 'o', 1}, Target: up.Target, Portals: []string{up.Portal},
		Auth: iscsi.Auth{In: auth}, Log: slog.New(slog.DiscardHandler),
		Times: initiator.Times{Missing: 100 * time.Millisecond, Logout: 100 * time.Millisecond},
	}}
	var errs error
	for r.cfg.LUN = range lunsTried {
		if _, err = r.once(ctx, lunTime); err == nil {
			return r, nil
		}
		errs = errors.Join(errs, fmt.Errorf("LUN %d: %w", r.cfg.LUN, err))
	}
	return nil, fault.Wrap(fault.NotFound, errs, "no volume of the group has the machine's lock")
}

// read reads the lock block.
func (r *lockReader) read(ctx context.Context) (vmlock.Block, error) {
	b, err := r.once(ctx, lockTime)
	return b, fault.Wrap(fault.KindOf(err), err, "the machine's lock cannot be read")
}

func (r *lockReader) once(ctx context.Context, within time.Duration) (b vmlock.Block, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	d, err := initiator.Open(ctx, r.cfg)
	if err != nil {
		return b, err
	}
	b, err = vmhome.ReadLock(d)
	if err == nil && b.VM.String() != r.vm {
		err = fault.New(fault.NotFound, "the lock of another machine")
	}
	return b, errors.Join(err, d.Close())
}

// newerLock tells whether a lock block came after another.
func newerLock(a, b vmlock.Block) bool {
	return a.Generation > b.Generation || a.Generation == b.Generation && a.Turn > b.Turn
}
