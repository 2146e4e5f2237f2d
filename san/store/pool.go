// Package store keeps thin, checksummed, snapshot-capable volumes on a pool
// of drives. See docs/adr/0002-store.md for the design and
// docs/formats/pool.md for the bytes.
package store

import (
	"steadfast/fault"
)

// Pool is an open pool. Its methods may be called from several goroutines; it
// starts none itself: the caller of Maintain lends it time for its background
// work, so that a simulation can run it on one thread.
type Pool struct{}

// Create formats drives as a new, empty pool and opens it. It refuses drives
// that hold a pool already (fault.Exists).
func Create(name string, opt Options, drives []NamedDrive) (*Pool, error) { return nil, errTodo }

// Open opens the pool that lies on drives, whatever crash it was left by.
// fault.NotFound when there is none; fault.Invalid with the missing drives'
// names when some are absent.
func Open(opt Options, drives []NamedDrive) (*Pool, error) { return nil, errTodo }

// Check reads a pool that is not open and reports whether it is sound. It
// writes nothing.
func Check(opt Options, drives []NamedDrive, progress func(done, total int64)) (CheckReport, error) {
	return CheckReport{}, errTodo
}

// Close stops admission, writes a checkpoint and leaves the drives to the
// caller to close.
func (p *Pool) Close() error { return errTodo }

// Maintain does one bounded piece (about ten milliseconds) of background
// work: cleaning, freeing what was deleted, checkpoints, sealing the log. It
// reports whether there is more to do now.
func (p *Pool) Maintain() (more bool, err error) { return false, errTodo }

// Status describes the pool.
func (p *Pool) Status() PoolStatus { return PoolStatus{} }

// SetThresholds sets the percentages of capacity at which volumes raise the
// thin-provisioning unit attention. Ascending, 1 to 99; empty for none.
func (p *Pool) SetThresholds(percent []int) error { return errTodo }

// AddDrive formats d and adds it to the pool. name is what people know it by.
func (p *Pool) AddDrive(d NamedDrive) error { return errTodo }

// EvacuateDrive begins to move everything off a drive; Maintain does the work
// and EventDriveGone tells the end. fault.Full when the rest has no room.
func (p *Pool) EvacuateDrive(name string) error { return errTodo }

// RemoveDrive takes an empty (evacuated) or failed and unreferenced drive out
// of the pool. fault.Busy while it holds live blocks.
func (p *Pool) RemoveDrive(name string) error { return errTodo }

// CreateVolume makes an empty volume.
func (p *Pool) CreateVolume(spec VolumeSpec) (VolumeStatus, error) { return VolumeStatus{}, errTodo }

// ChangeVolume changes a volume's settings, in one step.
func (p *Pool) ChangeVolume(name string, c VolumeChange) (VolumeStatus, error) {
	return VolumeStatus{}, errTodo
}

// DeleteVolume deletes a volume that is not open. With its snapshots if
// withSnapshots, else fault.Busy when it has some. fault.Busy, naming them,
// while clones stand on its snapshots. Space comes back through Maintain.
func (p *Pool) DeleteVolume(name string, withSnapshots bool) error { return errTodo }

// Volumes lists all volumes by name.
func (p *Pool) Volumes() []VolumeStatus { return nil }

// Volume describes one volume.
func (p *Pool) Volume(name string) (VolumeStatus, error) { return VolumeStatus{}, errTodo }

// CreateSnapshot freezes the content of a volume, in a time that does not
// depend on its size. It contains every write answered before the call.
func (p *Pool) CreateSnapshot(volume, name string) (SnapshotStatus, error) {
	return SnapshotStatus{}, errTodo
}

// Snapshots lists a volume's snapshots, oldest first.
func (p *Pool) Snapshots(volume string) ([]SnapshotStatus, error) { return nil, errTodo }

// DeleteSnapshot deletes a snapshot no clone stands on (else fault.Busy).
func (p *Pool) DeleteSnapshot(volume, name string) error { return errTodo }

// Rollback makes the volume's content that of its snapshot again. Snapshots
// taken later stay. The volume may be open; its users must not be writing.
func (p *Pool) Rollback(volume, snapshot string) error { return errTodo }

// Clone makes a new writable volume with the snapshot's content.
func (p *Pool) Clone(volume, snapshot, name string) (VolumeStatus, error) {
	return VolumeStatus{}, errTodo
}

// Changed calls emit, in ascending order, with the ranges whose content may
// differ between two snapshots of a volume (to == "" means its head now;
// from == "" means an empty volume). Its cost grows with what changed since
// from, not with the volume. emit returning false ends it.
func (p *Pool) Changed(volume, from, to string, emit func(Range) bool) error { return errTodo }

// StartScrub begins to verify every block of the pool; Maintain does the
// work. fault.Busy when one is running.
func (p *Pool) StartScrub() error { return errTodo }

// StopScrub ends a running scrub.
func (p *Pool) StopScrub() {}

// Scrub reports on the running or last scrub.
func (p *Pool) Scrub() ScrubStatus { return ScrubStatus{} }

// OpenVolume opens a volume for I/O. Several openings are allowed.
func (p *Pool) OpenVolume(name string) (*Volume, error) { return nil, errTodo }

// OpenSnapshot opens a snapshot for reading.
func (p *Pool) OpenSnapshot(volume, name string) (*Volume, error) { return nil, errTodo }

var errTodo = fault.New(fault.Internal, "not built yet")
