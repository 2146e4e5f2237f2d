package vmm

import (
	"context"
	"errors"
	"os"

	"steadfast/block"
	"steadfast/compute/diskwire"
	"steadfast/fault"
)

// Disk is a disk of a machine: a File, which its process gets, or a Device, which this
// process serves to it.
type Disk struct {
	// File is open, and stays the caller's: see filedisk.OpenFile.
	File *os.File
	// Device is in use until Process.Drained.
	Device block.Device
	// ReadOnly has changes of a Device refused here, whatever the process asks for.
	ReadOnly bool
	// Space, if any, has writes of a Device that there is no space for held until there is;
	// it is told both, as diskwire.NewWaiting says.
	Space func(err error)
}

// Files are disks in files.
func Files(files ...*os.File) (list []Disk) {
	for _, f := range files {
		list = append(list, Disk{File: f})
	}
	return list
}

// serve has a disk served until the process is gone. One that asks for what no process of ours
// does is killed.
func (p *Process) serve(d Disk) (*diskwire.Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	device := d.Device
	if d.Space != nil {
		device = diskwire.NewWaiting(ctx, device, d.Space)
	}
	s, err := diskwire.NewServer(device, diskwire.Options{ReadOnly: d.ReadOnly})
	if err != nil {
		cancel()
		return nil, err
	}
	p.disks = append(p.disks, s)
	gone := make(chan struct{})
	go func() {
		// What is held for want of space is held for nobody then.
		defer cancel()
		select {
		case <-p.exited:
		case <-gone:
		}
	}()
	p.serving.Go(func() {
		defer close(gone)
		if err := s.Serve(ctx); err != nil {
			p.violated(err)
		}
	})
	return s, nil
}

// violated kills a process for what it has sent.
func (p *Process) violated(err error) {
	p.mu.Lock()
	if p.broke == nil {
		p.broke = err
	}
	p.mu.Unlock()
	p.Kill()
}

// given closes here what the process has by now, or never will.
func (p *Process) given() (err error) {
	for _, s := range p.disks {
		if s != nil {
			err = errors.Join(err, s.Given())
		}
	}
	return err
}

// drain tells when nothing of the process is under way any more.
func (p *Process) drain() {
	<-p.exited
	p.serving.Wait()
	close(p.drained)
}

// Drained is closed when the process has ended, and so has all that it had asked of a
// Device: nothing changes there any more on its behalf. A Device that holds requests is to
// end them first; Close does not wait for that.
func (p *Process) Drained() <-chan struct{} { return p.drained }

// Resized tells the machine that a Device may have another size than it had. Fails with
// fault.Invalid for a disk that is none.
func (p *Process) Resized(disk int) error {
	if disk < 0 || disk >= len(p.disks) || p.disks[disk] == nil {
		return fault.New(fault.Invalid, "disk %d of the machine is none that is served", disk)
	}
	p.disks[disk].Resized()
	return nil
}
