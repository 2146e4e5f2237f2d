// Package lockread reads a machine's lock block from its home volume past the machine's hosts,
// as the storage has it: the witness of demonstrations and tests to who took a lock over, who
// trust no host's word. It comes as a storage node, by a nexus of its own, which only reads.
package lockread

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"steadfast/compute/initiator"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
)

const (
	// readTime bounds one reading; a storage that is being taken over is waited for. lunTime
	// bounds looking whether it is this volume.
	readTime = 30 * time.Second
	lunTime  = 2 * time.Second
	// lunsTried is how many volumes the group may have had before the machine's home.
	lunsTried = 32
)

// Options say where a lock block is.
type Options struct {
	// VM is the machine's identifier; empty: of any machine, the first that is found.
	VM string
	// Target is the iSCSI name of the group that has the home volume, and Portal its address.
	Target, Portal string
	// Auth is whom the reader comes as, and what that one proves; see node.AccessOf.
	Auth *iscsi.Credentials
	// Tag is of no other reader at the same time.
	Tag byte
	// Dial connects to an address; nil: from where this process is.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Reader reads one machine's lock block. Its methods may be called by one goroutine at a time.
type Reader struct {
	vm  string
	cfg initiator.Config
}

// Open finds the home volume. Fails with fault.NotFound.
func Open(ctx context.Context, o Options) (*Reader, error) {
	r := &Reader{vm: o.VM, cfg: initiator.Config{
		Initiator: o.Auth.Name, ISID: iscsi.ISID{0x80, 'l', 'o', 'c', 'k', o.Tag}, Target: o.Target, Portals: []string{o.Portal},
		Auth: iscsi.Auth{In: o.Auth}, Log: slog.New(slog.DiscardHandler), Dial: o.Dial,
		Times: initiator.Times{Missing: 100 * time.Millisecond, Logout: 100 * time.Millisecond},
	}}
	var errs error
	for r.cfg.LUN = range lunsTried {
		_, err := r.once(ctx, lunTime)
		if err == nil {
			return r, nil
		}
		errs = errors.Join(errs, fmt.Errorf("LUN %d: %w", r.cfg.LUN, err))
	}
	return nil, fault.Wrap(fault.NotFound, errs, "no volume of the group has the machine's lock")
}

// Read reads the lock block. It waits up to half a minute for a storage that is being taken
// over. Fails as the initiator does.
func (r *Reader) Read(ctx context.Context) (vmlock.Block, error) {
	b, err := r.once(ctx, readTime)
	return b, fault.Wrap(fault.KindOf(err), err, "the machine's lock cannot be read")
}

func (r *Reader) once(ctx context.Context, within time.Duration) (b vmlock.Block, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	d, err := initiator.Open(ctx, r.cfg)
	if err != nil {
		return b, err
	}
	b, err = vmhome.ReadLock(d)
	if err == nil && r.vm != "" && b.VM.String() != r.vm {
		err = fault.New(fault.NotFound, "the lock of another machine")
	}
	return b, errors.Join(err, d.Close())
}
