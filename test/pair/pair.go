package main

import "context"

// Volume is a disk that clients use.
type Volume struct {
	URL  string // iscsi://, by an address that follows the owner
	Size int64  // bytes
}

// Status is what a pair says of itself.
type Status struct {
	// Owner serves the group now; empty: nobody.
	Owner Member
	// Epoch counts changes of owner.
	Epoch uint64
	// Whole: both nodes have all data, and the witness votes.
	Whole bool
	// Detail is for a person who waits.
	Detail string
}

// Pair is what is tried: processes in the namespaces of a world. The runner
// cuts links by itself; all else that it does goes through here. One caller.
type Pair interface {
	// Up makes everything from nothing and waits until it is whole.
	Up(ctx context.Context) error
	// Volumes are there after Up.
	Volumes() []Volume
	// Status asks whoever lives. Nobody answering is no error: no owner.
	Status(ctx context.Context) (Status, error)
	// Kill ends a member's processes as a crash does, and waits until they are
	// gone.
	Kill(m Member) error
	// Start starts a member again. One that runs is left alone.
	Start(ctx context.Context, m Member) error
	// Pause stops a member's processes where they stand, Resume lets them go on.
	Pause(m Member) error
	Resume(m Member) error
	// Move has the group go to the other node, as an administrator does.
	Move(ctx context.Context) error
	// PID is the process of a member, 0 when it does not run; Folder is where it
	// keeps its files.
	PID(m Member) int
	Folder(m Member) string
	// Cannot says why a kind of round makes no sense here; empty: it does.
	Cannot(kind string) string
	// Close ends all processes.
	Close() error
}
