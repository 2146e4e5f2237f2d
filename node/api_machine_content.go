package node

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// Parts of a machine's content, as the API names them.
const (
	partKernel = "kernel"
	partInitrd = "initrd"
	partDisk   = "disk/" // and the disk's name
)

// Of what goes to and comes from disks.
const (
	// pieceBytes is how much of a disk is read at once, and one message has.
	pieceBytes = 256 << 10
	// underWay is how many pieces are read or written at once.
	underWay = 16
	// grainBytes is what is left out when it is all zeros.
	grainBytes = 4096
)

// diskNamed returns the number of a machine's disk.
func diskNamed(m *inventory.Machine, name string) (int, error) {
	k := slices.IndexFunc(m.Disks, func(d inventory.Disk) bool { return d.Name == name })
	if k < 0 {
		return 0, noDisk(m, name)
	}
	return k, nil
}

func noPart(part string) error {
	return fault.New(fault.Invalid, "%.100q is no part of a machine: %q, %q, or %q with a disk's name", part, partKernel, partInitrd, partDisk)
}

// WriteMachine implements the API's call.
func (s machineService) WriteMachine(ctx context.Context, in *connect.ClientStream[steadfastv1.WriteMachineRequest]) (*steadfastv1.WriteMachineResponse, error) {
	n := s.n
	if !n.cfg.Cluster.Stores() {
		return s.passWrite(ctx, in)
	}
	if !in.Receive() {
		return nil, errors.Join(fault.New(fault.Invalid, "nothing came to be written"), in.Err())
	}
	name := in.Msg().Machine
	var written int64
	err := n.editMachine(ctx, name, func(m *inventory.Machine, home *vmhome.Home, disks []block.Device) (err error) {
		w := &content{m: m, home: home, disks: disks, dir: n.cfg.DataDir, slots: make(chan struct{}, underWay)}
		defer func() { err = errors.Join(err, w.close()) }()
		for more := true; more; more = in.Receive() {
			if err := w.take(in.Msg()); err != nil {
				return err
			}
		}
		if err := in.Err(); err != nil {
			return fault.Wrap(fault.Canceled, err, "what is to be written came in part only")
		}
		written = w.written
		return w.save()
	})
	if err != nil {
		return nil, err
	}
	v, err := n.site()
	if err != nil {
		return nil, err
	}
	n.publishMachine("machine-written", name, "%d bytes were written into the volumes of machine %q", written, name)
	return &steadfastv1.WriteMachineResponse{Machine: n.describeMachine(v, name), Written: written}, nil
}

// editMachine has a function write into the volumes of a machine that has stopped, under its
// lock. One that is started meanwhile ends that: fault.Fenced.
func (n *Node) editMachine(ctx context.Context, name string, change func(*inventory.Machine, *vmhome.Home, []block.Device) error) error {
	if _, _, err := n.atRest(name); err != nil {
		return err
	}
	var generation uint64
	v, err := n.amend(ctx, func(v *inventory.View) (edits []quorum.Edit, err error) {
		generation, edits, err = v.ReserveGeneration(name)
		return edits, err
	})
	if err != nil {
		return err
	}
	m := v.Machines[name]
	if m == nil {
		return fault.New(fault.NotFound, "the machine %q was deleted meanwhile; see \"steadfast vm list\"", name)
	}
	c, spec, err := n.groupOf(v, m)
	if err != nil {
		return err
	}
	o := host.EditOptions{
		ID: m.ID, Generation: generation, Owner: vmlock.Owner{Host: inventory.EditorNumber, Boot: inventory.EditorBoot}, Log: n.log.With("machine", name),
	}
	for _, volume := range m.Volumes() {
		dev, err := openSoon(ctx, c, host.At{Group: spec.Name, Volume: volume})
		if err != nil {
			for _, v := range o.Volumes {
				_ = v.Close() // nothing was asked of it
			}
			return err
		}
		o.Volumes = append(o.Volumes, dev)
	}
	return host.Edit(ctx, o, func(home *vmhome.Home, disks []block.Device) error { return change(m, home, disks) })
}

// content takes in what is to be written into a machine's volumes.
type content struct {
	m     *inventory.Machine
	home  *vmhome.Home
	disks []block.Device
	dir   string // of files that are kept until all is there

	part    string
	ended   map[string]bool // parts that are whole
	disk    int             // of the part
	at      int64           // where the next data of the part may go
	kernel  *spool
	initrd  *spool
	present *spool // of the part
	written int64

	slots  chan struct{} // one for each piece that is under way
	pieces sync.WaitGroup
	mu     sync.Mutex
	failed error // of a piece
}

// spool keeps a file until it is put into the home, whose definition names kernel and initial
// RAM disk at once.
type spool struct {
	name  string
	bytes int64
	file  *os.File // without a name; nil: there is to be none
}

// take takes in a request.
func (w *content) take(r *steadfastv1.WriteMachineRequest) error {
	if r.Part != w.part {
		if err := w.begin(r); err != nil {
			return err
		}
	}
	if w.present != nil {
		return w.keep(r.Data)
	}
	return w.put(r)
}

// begin begins a part.
func (w *content) begin(r *steadfastv1.WriteMachineRequest) (err error) {
	if err := w.whole(); err != nil {
		return err
	}
	if w.ended[r.Part] {
		return fault.New(fault.Invalid, "the part %.100q comes a second time", r.Part)
	}
	w.part, w.at, w.present = r.Part, 0, nil
	if name, is := strings.CutPrefix(r.Part, partDisk); is {
		w.disk, err = diskNamed(w.m, name)
		return err
	}
	if r.Part != partKernel && r.Part != partInitrd {
		return noPart(r.Part)
	}
	least := int64(1)
	if r.Part == partInitrd {
		least = 0
	}
	if r.FileBytes < least || r.FileBytes > vmhome.FileBytesMax {
		return fault.New(fault.Invalid, "the %s %.100q has %d bytes: at least %d and at most %d", r.Part, r.FileName, r.FileBytes, least, vmhome.FileBytesMax)
	}
	w.present = &spool{name: r.FileName, bytes: r.FileBytes}
	if r.Part == partKernel {
		w.kernel = w.present
	} else {
		w.initrd = w.present
	}
	if r.FileBytes == 0 {
		return nil
	}
	f, err := os.CreateTemp(w.dir, "boot-*")
	if err != nil {
		return fault.Wrap(fault.Failed, err, "a copy of the "+r.Part)
	}
	w.present.file = f
	return fault.Wrap(fault.Failed, os.Remove(f.Name()), "a copy of the "+r.Part)
}

// whole ends a part. Fails with fault.Invalid for a file that came in part.
func (w *content) whole() error {
	if w.part == "" {
		return nil
	}
	if w.present != nil && w.at != w.present.bytes {
		return fault.New(fault.Invalid, "the %s %.100q is said to have %d bytes, and %d came", w.part, w.present.name, w.present.bytes, w.at)
	}
	if w.ended == nil {
		w.ended = map[string]bool{}
	}
	w.ended[w.part] = true
	return nil
}

// keep keeps data of a file.
func (w *content) keep(data []byte) error {
	if w.at += int64(len(data)); w.at > w.present.bytes {
		return fault.New(fault.Invalid, "the %s %.100q is said to have %d bytes, and more came", w.part, w.present.name, w.present.bytes)
	}
	if w.present.file == nil {
		return nil
	}
	w.written += int64(len(data))
	_, err := w.present.file.Write(data)
	return fault.Wrap(fault.Failed, err, "a copy of the "+w.part)
}

// put writes data or zeros to a disk. Several pieces are under way at once; they do not
// overlap, for each begins behind the one before.
func (w *content) put(r *steadfastv1.WriteMachineRequest) error {
	length := int64(len(r.Data))
	if r.ZeroBytes != 0 {
		if length > 0 {
			return fault.New(fault.Invalid, "a request has either data or zeros")
		}
		length = r.ZeroBytes
	}
	d := w.m.Disks[w.disk]
	switch {
	case length == 0:
		return nil
	case length < 0 || r.Offset < 0 || length%block.SectorSize != 0 || r.Offset%block.SectorSize != 0:
		return fault.New(fault.Invalid, "disk %q: %d bytes at %d are no whole sectors of %d", d.Name, length, r.Offset, block.SectorSize)
	case r.Offset < w.at:
		return fault.New(fault.Invalid, "disk %q: what is for %d comes after what is for %d", d.Name, r.Offset, w.at)
	case r.Offset > d.Bytes-length:
		return fault.New(fault.Full, "disk %q has %d bytes, and what comes goes on to %d; let it grow: \"steadfast vm set %s --disk %s=SIZE\"", d.Name, d.Bytes, r.Offset+length, w.m.Name, d.Name)
	}
	w.at = r.Offset + length
	w.slots <- struct{}{}
	if err := w.trouble(nil); err != nil {
		<-w.slots
		return err
	}
	dev, data, off, zeros := w.disks[w.disk], r.Data, r.Offset, r.ZeroBytes
	if zeros == 0 {
		w.written += length
		data = slices.Clone(data) // the message is used again for the next one
	}
	w.pieces.Go(func() {
		defer func() { <-w.slots }()
		var err error
		if zeros > 0 {
			err = dev.Zero(off, zeros, 0)
		} else {
			err = dev.WriteAt(data, off, 0)
		}
		_ = w.trouble(fault.Wrap(fault.KindOf(err), err, "disk "+d.Name))
	})
	return nil
}

// trouble notes the first error of a piece, and returns it.
func (w *content) trouble(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
	return w.failed
}

// save has all that came be stable, and then the definition name the new files.
func (w *content) save() error {
	if err := w.whole(); err != nil {
		return err
	}
	w.pieces.Wait()
	if err := w.trouble(nil); err != nil {
		return err
	}
	for i, d := range w.m.Disks {
		if !w.ended[partDisk+d.Name] {
			continue
		}
		if err := w.disks[i].Flush(); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "disk "+d.Name)
		}
	}
	if w.kernel == nil && w.initrd == nil {
		return nil
	}
	d, _ := w.home.Definition()
	define(&d, w.m)
	kernel, err := w.kernel.source()
	if err != nil {
		return err
	}
	initrd, err := w.initrd.source()
	if err != nil {
		return err
	}
	if w.initrd != nil && initrd == nil {
		d.Initrd = nil
	}
	return w.home.Save(d, kernel, initrd)
}

// define has a definition say what the inventory has of its machine.
func define(d *vmhome.Definition, m *inventory.Machine) {
	d.Name, d.ID, d.Revision, d.Hardware, d.Policy = m.Name, m.ID, m.Revision, m.Hardware, m.Policy
}

// source is the file from its beginning; nil: there is none.
func (s *spool) source() (*vmhome.Source, error) {
	if s == nil || s.file == nil {
		return nil, nil
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return nil, fault.Wrap(fault.Failed, err, "a copy of "+s.name)
	}
	return &vmhome.Source{Name: clipText(s.name), Bytes: s.bytes, Reader: s.file}, nil
}

// clipText holds a file's name to what a definition takes, 255 bytes.
func clipText(name string) string { return name[max(0, len(name)-255):] }

// close waits for what is under way, and forgets the copies.
func (w *content) close() (err error) {
	w.pieces.Wait()
	for _, s := range []*spool{w.kernel, w.initrd} {
		if s != nil && s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
	}
	return err
}

// ReadMachine implements the API's call. No lock is held, for nothing is written: the
// machine has stopped, and when all is read it has not been started meanwhile. Of one that ended
// with its host nobody knows that it has stopped, until that host is shut out.
func (s machineService) ReadMachine(ctx context.Context, req *steadfastv1.ReadMachineRequest, out *connect.ServerStream[steadfastv1.ReadMachineResponse]) error {
	n := s.n
	if !n.cfg.Cluster.Stores() {
		return s.passRead(ctx, req, out)
	}
	v, m, err := n.atRest(req.Machine)
	if err != nil {
		return err
	}
	if p := v.Placements[m.Name]; p != nil && p.Ended == inventory.EndedHostLost && p.Generation > m.Floor {
		if v, m, err = n.shutOut(ctx, m.Name); err != nil {
			return err
		}
	}
	c, spec, err := n.groupOf(v, m)
	if err != nil {
		return err
	}
	at := host.At{Group: spec.Name, Volume: m.Home}
	read := func(dev host.Volume) error { return sendFile(dev, m, req.Part, out.Send) }
	if name, is := strings.CutPrefix(req.Part, partDisk); is {
		k, err := diskNamed(m, name)
		if err != nil {
			return err
		}
		at.Volume = m.Disks[k].Volume
		read = func(dev host.Volume) error { return sendDisk(ctx, dev, m.Disks[k].Bytes, out.Send) }
	} else if req.Part != partKernel && req.Part != partInitrd {
		return noPart(req.Part)
	}
	if err := withVolume(ctx, c, at, read); err != nil {
		return err
	}
	_, after, err := n.atRest(req.Machine)
	if err == nil && (after.Run != m.Run || after.ID != m.ID || after.Floor != m.Floor) {
		err = fault.New(fault.Busy, "the machine %q was started or written to while it was read: what came is of two moments; read it again", req.Machine)
	}
	return err
}

// shutOut has the host write nothing any more that a machine ended with: it counts as lost,
// and may live, and run the machine still. Who takes the lock has it out.
func (n *Node) shutOut(ctx context.Context, name string) (*inventory.View, *inventory.Machine, error) {
	err := n.editMachine(ctx, name, func(*inventory.Machine, *vmhome.Home, []block.Device) error { return nil })
	if err != nil {
		return nil, nil, fault.Wrap(fault.KindOf(err), err, "shutting out the host that the machine "+name+" was lost with")
	}
	return n.atRest(name)
}

// atRest returns a machine that has stopped. Fails with fault.Busy for another.
func (n *Node) atRest(name string) (*inventory.View, *inventory.Machine, error) {
	v, m, err := n.findMachine(name)
	if err != nil {
		return nil, nil, err
	}
	if m.Desired == inventory.Running || v.Placements[name].Active() {
		return nil, nil, fault.New(fault.Busy, "the machine %q runs, and what is in its volumes is its own; stop it first: \"steadfast vm stop %s --wait\"", name, name)
	}
	return v, m, nil
}

// sendFile sends a kernel or an initial RAM disk.
func sendFile(dev host.Volume, m *inventory.Machine, part string, send func(*steadfastv1.ReadMachineResponse) error) error {
	h, err := vmhome.Open(dev)
	if err != nil {
		return err
	}
	d, _ := h.Definition()
	f := d.Kernel
	if part == partInitrd {
		f = d.Initrd
	}
	if f == nil {
		return fault.New(fault.NotFound, "the machine %q has no %s; give it one: \"steadfast vm set %s --%s FILE\"", m.Name, part, m.Name, part)
	}
	if err := send(&steadfastv1.ReadMachineResponse{FileName: f.Name, Bytes: f.Bytes}); err != nil {
		return err
	}
	return h.Copy(sender(func(p []byte) error {
		for len(p) > 0 {
			piece := p[:min(len(p), pieceBytes)]
			if err := send(&steadfastv1.ReadMachineResponse{Data: piece}); err != nil {
				return err
			}
			p = p[len(piece):]
		}
		return nil
	}), *f)
}

// sender is a function as an io.Writer.
type sender func([]byte) error

// Write implements io.Writer.
func (s sender) Write(p []byte) (int, error) {
	if err := s(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// sendDisk sends what is on a disk of so many bytes, without zeros.
func sendDisk(ctx context.Context, dev block.Device, bytes int64, send func(*steadfastv1.ReadMachineResponse) error) error {
	if err := send(&steadfastv1.ReadMachineResponse{Bytes: bytes}); err != nil {
		return err
	}
	buf := make([]byte, underWay*pieceBytes)
	for at := int64(0); at < bytes; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "reading a disk")
		}
		p := buf[:min(int64(len(buf)), bytes-at)]
		if err := readPieces(dev, p, at); err != nil {
			return err
		}
		for off, piece := range nonZero(p) {
			if err := send(&steadfastv1.ReadMachineResponse{Offset: at + int64(off), Data: piece}); err != nil {
				return err
			}
		}
	}
	return nil
}

// readPieces fills p from off, all pieces at once.
func readPieces(dev block.Device, p []byte, off int64) error {
	var all sync.WaitGroup
	errs := make([]error, (len(p)+pieceBytes-1)/pieceBytes)
	for i := range errs {
		from := i * pieceBytes
		to := min(from+pieceBytes, len(p))
		all.Go(func() { errs[i] = dev.ReadAt(p[from:to], off+int64(from)) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// nonZero yields what is not zero of p, in pieces of at most pieceBytes, with where each
// begins in it.
func nonZero(p []byte) func(yield func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for from := 0; from < len(p); {
			to := from
			for to < len(p) && to-from < pieceBytes && !allZero(p[to:min(to+grainBytes, len(p))]) {
				to = min(to+grainBytes, len(p))
			}
			if to == from {
				from = min(from+grainBytes, len(p))
				continue
			}
			if !yield(from, p[from:to]) {
				return
			}
			from = to
		}
	}
}

func allZero(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }
