package quorumio

import (
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// diskBytesMax bounds what waits for the disk; what there is around a job's data
// counts as jobBytes and entryBytes. A loop that has more takes in no messages and
// no proposals until there is room: then the member is as good as silent, and a
// leader ceases to be one.
const (
	diskBytesMax = 64 << 20
	jobBytes     = 512
	entryBytes   = 128
)

// slowWrite is from when on a write is told of.
const slowWrite = time.Second

// job is what is to become stable, and what may be said then.
type job struct {
	change change
	after  []*raftpb.Message
	bytes  int
}

// written is a batch of jobs that are stable, or the reason why nobody knows.
type written struct {
	jobs []job
	err  error
}

// disk makes changes of the store stable, in their order, beside the loop: while
// a flush takes its time, the loop goes on. What waits together is one write. One
// goroutine, run, writes; the loop puts, takes from done, and stops it.
type disk struct {
	store *store
	log   *slog.Logger
	done  chan written
	over  chan struct{} // closed by stop
	tasks sync.WaitGroup
	wake  chan struct{} // has room for one

	mu      sync.Mutex
	pending []job

	bytes int // of the loop: what was put and has not come back by done
}

func newDisk(s *store, log *slog.Logger) *disk {
	return &disk{store: s, log: log, done: make(chan written), over: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (d *disk) start() { d.tasks.Go(d.run) }

// stop waits for the write that is under way; what else waits is not written, as
// in a crash.
func (d *disk) stop() {
	close(d.over)
	d.tasks.Wait()
}

// put queues a job; it never blocks.
func (d *disk) put(j job) {
	j.bytes = jobBytes + j.change.bytes()
	d.bytes += j.bytes
	d.mu.Lock()
	d.pending = append(d.pending, j)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default: // it will see this one too
	}
}

// taken notes what came by done.
func (d *disk) taken(w written) {
	for _, j := range w.jobs {
		d.bytes -= j.bytes
	}
}

// full tells whether the loop must wait.
func (d *disk) full() bool { return d.bytes >= diskBytesMax }

func (d *disk) run() {
	for {
		select {
		case <-d.wake:
		case <-d.over:
			return
		}
		d.mu.Lock()
		w := written{jobs: d.pending}
		d.pending = nil
		d.mu.Unlock()
		if len(w.jobs) == 0 {
			continue // an earlier turn had them
		}
		began := time.Now()
		w.err = d.write(w.jobs)
		if took := time.Since(began); took >= slowWrite {
			d.log.Warn("the disk of the member's log is slow", "took", took)
		}
		select {
		case d.done <- w:
		case <-d.over:
			return
		}
		if w.err != nil {
			return // nobody knows what is stable: the loop ends
		}
	}
}

// write is one write of the store. A panic of bbolt, on a file that is damaged
// under it, ends the member and not the process.
func (d *disk) write(jobs []job) (err error) {
	defer guard(&err)
	changes := make([]change, len(jobs))
	for i, j := range jobs {
		changes[i] = j.change
	}
	return d.store.commit(changes)
}
