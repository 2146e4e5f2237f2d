package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// serialMax is how much of a disk's name its guest is told, in bytes: VIRTIO 1.2, 5.2.6.
const serialMax = 20

// image is what the guest's lives begin from: it lasts over them.
type image struct {
	cfg            machine.Config
	kernel, initrd *os.File // without names; initrd may be nil
	wires          []Attachment
}

// config is what a life begins as.
func (b *image) config() machine.Config {
	cfg := b.cfg
	cfg.Seed = machineio.Seed()
	cfg.Wall = uint64(time.Now().UnixNano())
	return cfg
}

func (b *image) close() {
	for _, f := range []*os.File{b.kernel, b.initrd} {
		if f != nil {
			_ = f.Close() // it was only read
		}
	}
	for _, a := range b.wires {
		_ = a.Wire.Close() // the network's to tell, if anybody's
	}
}

// boot reads the home volume, whose lock is held, and attaches the network cards. The caller closes
// what there is, in any case. What waits for storage ends when the volumes are
// closed.
func (r *run) boot(ctx context.Context, home *gate) (b *image, err error) {
	b = &image{}
	id, err := vmlock.ParseID(r.m.ID)
	if err != nil {
		return b, err
	}
	h, err := vmhome.Open(home)
	if err != nil {
		return b, err
	}
	if h.ID() != id {
		return b, fault.New(fault.Invalid, "the volume %s is the home of the machine %s", r.m.Home, h.ID())
	}
	d, err := r.define(h)
	if err != nil {
		return b, err
	}
	if b.kernel, err = r.fetch(h, d.Kernel); err != nil {
		return b, err
	}
	if d.Initrd != nil {
		if b.initrd, err = r.fetch(h, d.Initrd); err != nil {
			return b, err
		}
	}
	b.cfg.Memory, b.cfg.CommandLine = d.Memory, d.CommandLine
	for _, disk := range d.Disks {
		b.cfg.Disks = append(b.cfg.Disks, machine.Disk{Size: disk.Bytes, Serial: disk.Name[:min(len(disk.Name), serialMax)]})
	}
	for i, n := range d.Nets {
		mac, err := n.Address()
		if err != nil {
			return b, err
		}
		a, err := r.h.o.Attach(ctx, r.m.Name, i, n)
		if err != nil {
			return b, fault.Wrap(fault.KindOf(err), err, "the network "+n.Network)
		}
		b.wires = append(b.wires, a)
		b.cfg.Nets = append(b.cfg.Nets, machine.Net{MAC: mac, MTU: a.MTU})
	}
	return b, nil
}

// define returns the machine's definition: the inventory has it, and the home gets it when
// it has another, for whoever registers the machine from its volumes some day. The lock
// is what makes this host the one to do that.
func (r *run) define(h *vmhome.Home) (vmhome.Definition, error) {
	d, _ := h.Definition()
	if d.Kernel == nil {
		return d, fault.New(fault.NotFound, "the home volume %s has no kernel; put one there: \"steadfast vm set %s --kernel FILE\"", r.m.Home, r.m.Name)
	}
	next := d
	next.Name, next.ID, next.Revision = r.m.Name, r.m.ID, r.m.Revision
	next.Hardware, next.Policy = r.m.Hardware, r.m.Policy
	same, err := alike(d, next)
	if err != nil || same {
		return next, err
	}
	if err := h.Save(next, nil, nil); err != nil {
		return next, fault.Wrap(fault.KindOf(err), err, "saving the machine's definition")
	}
	return next, nil
}

// alike tells whether two definitions differ in no more than their revision, which changes
// with every start.
func alike(a, b vmhome.Definition) (bool, error) {
	type made struct {
		Name, ID string
		inventory.Hardware
		inventory.Policy
	}
	x, err := json.Marshal(made{a.Name, a.ID, a.Hardware, a.Policy})
	y, err2 := json.Marshal(made{b.Name, b.ID, b.Hardware, b.Policy})
	return bytes.Equal(x, y), fault.Wrap(fault.Internal, errors.Join(err, err2), "a machine's definition")
}

// fetch copies a file of the home's to one that nobody else sees, and that ends with this
// process, however that ends.
func (r *run) fetch(h *vmhome.Home, f *vmhome.File) (*os.File, error) {
	to, err := os.CreateTemp(r.h.o.Temp, "boot-*")
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "a copy of what the machine boots from")
	}
	if err = os.Remove(to.Name()); err == nil {
		err = h.Copy(to, *f)
	}
	if err == nil {
		_, err = to.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.KindOf(err), err, "what the machine boots from"), to.Close())
	}
	return to, nil
}
