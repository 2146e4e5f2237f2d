package sim

import (
	"errors"
	"fmt"

	"steadfast/san/drive/drivetest"
	"steadfast/san/store"
	"steadfast/san/store/storetest"
)

// failing runs a history in which a drive refuses a write or a flush. The
// operation that met it fails; the drive is out; what was answered before can
// be read, or answers an error; and with another drive the pool goes on.
func (h *history) failing(n int) error {
	h.profile.volumeMax = min(h.profile.volumeMax, 16<<20)
	h.profile.without("evacuate", "space", "add drive", "die")
	if err := h.operations(50+h.rand.IntN(150), n); err != nil {
		return err
	}
	d := h.disks[h.rand.IntN(len(h.disks))]
	kind, name := drivetest.FailWrite, "write"
	if h.rand.IntN(3) == 0 {
		kind, name = drivetest.FailFlush, "flush"
	}
	after := 1 + h.rand.IntN(40)
	h.note("%s fails its %s number %d from here", d.Name(), name, after)
	d.Plan(kind, after)
	h.profile.without("reopen") // what failed works again after that
	h.lenient, h.surviving = true, true
	if err := h.operations(100+h.rand.IntN(100), n); err != nil {
		return err
	}
	if d.Planned() > 0 {
		h.note("it never came to that")
		h.lenient = false
		return h.finish()
	}
	if len(h.disks) > 1 {
		if err := h.goesOn(d); err != nil {
			return err
		}
	}
	return h.afterFailure(d)
}

// metFailure notes an operation that a failing drive has refused. Where the
// pool goes on, the log has moved when it has come to rest, and what became of
// the operation stays so. Where it cannot go on, a restart may find it done.
func (h *history) metFailure(op storetest.Op) error {
	if len(h.disks) == 1 {
		h.model.Unanswered(op)
		h.halted = true
		return nil
	}
	if _, err := h.drain(); err != nil {
		return err
	}
	return h.partly(op)
}

// goesOn demands that a pool with another healthy drive takes writes.
func (h *history) goesOn(d *drivetest.Disk) error {
	if _, err := h.drain(); err != nil {
		return fmt.Errorf("after %s failed: %w", d.Name(), err)
	}
	for _, s := range h.pool.Status().Drives {
		if s.Name == d.Name() && s.State != "failed" {
			return fmt.Errorf("drive %s failed and is called %s", d.Name(), s.State)
		}
	}
	h.surviving = false // from here on, no operation may fail for the drive
	name := h.name("v")
	spec := store.VolumeSpec{Name: name, Size: 4 << 20}
	st, err := h.pool.CreateVolume(spec)
	if err := h.settle(storetest.CreateVolume{Spec: spec, ID: st.ID}, true, err); err != nil {
		return err
	}
	dev, err := h.device(name)
	if err != nil {
		return err
	}
	for i := range int64(20) {
		if err := h.writeAt(target{h.model.Now().Volumes[name], dev}, i*32<<10, h.stamps(32<<10)); err != nil {
			return err
		}
	}
	return nil
}

// afterFailure restarts the node. Its drives are there again and work, as a
// disk does that was only unplugged; what the failed one had in its cache may
// be gone. Then the pool is read, and must be right where it can be read.
func (h *history) afterFailure(d *drivetest.Disk) error {
	clear(h.devices)
	if h.rand.IntN(2) == 0 {
		if err := h.closePool(); err != nil && len(h.disks) > 1 {
			return fmt.Errorf("close after %s failed: %w", d.Name(), err)
		}
	}
	h.world.Kill(h.rand)
	if err := h.open(); err != nil {
		return fmt.Errorf("open after %s failed: %w", d.Name(), err)
	}
	got, err := h.read()
	if err != nil {
		return err
	}
	if err := h.model.Recover(got.State, true); err != nil {
		return err
	}
	if quiet, err := h.drain(); err != nil || !quiet {
		return errors.Join(err, errors.New("no rest after the restart"))
	}
	return h.compare()
}
