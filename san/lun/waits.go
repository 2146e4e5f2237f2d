package lun

import "sync"

// Waits is how tasks of a Server wait for one another: for their turn, for tasks
// that are being ended, and for a change of a unit's state that is being saved.
// All other locks are held for moments, and never while a task waits. A
// simulation that has one task run at a time brings its own.
type Waits interface {
	// Lock returns a lock that is held while a volume is called.
	Lock() sync.Locker
	// Cond returns a condition of what l guards.
	Cond(l sync.Locker) Cond
}

// Cond is a condition, as sync.Cond is.
type Cond interface {
	Wait()
	Broadcast()
}

// syncWaits are package sync's.
type syncWaits struct{}

func (syncWaits) Lock() sync.Locker       { return &sync.Mutex{} }
func (syncWaits) Cond(l sync.Locker) Cond { return sync.NewCond(l) }
