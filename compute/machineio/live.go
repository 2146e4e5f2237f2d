// Package machineio runs a machine that lives now: it keeps its time with the host's,
// gives it what disks, networks, people and the host's randomness say, and logs that.
//
//	disks, networks, console ---> queue ---> [ loop: the machine ] ---> disks, networks, console
//	                                              |
//	                                             log
//
// One goroutine, the loop, owns the machine. An input gets the machine's count when the
// loop takes it from the queue, is logged, and then delivered: what is in the log is
// all that the machine is not a function of.
//
// The queue is bounded by what it holds: requests in flight of disks by their queues,
// frames by framesMax and frameBytesMax, what is typed by typedMax. A frame waits until the
// guest has room for it; who brings more than may wait drops them, as a network does, or
// waits, too.
// A guest that writes more on its serial port than is read has to wait, and its clock
// falls behind meanwhile.
package machineio

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	"math"
	"sync"
	"time"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// Wire is the network that a card is on.
type Wire interface {
	// Send takes a frame that the guest sends. It must not wait; it may drop it.
	Send(frame []byte)
}

// Options are what a machine lives with. Disks and Wires are those of its Config, in
// order; a wire may be nil.
type Options struct {
	Disks []block.Device
	Wires []Wire
	// Serial gets what the guest writes to the serial port. While a Write waits, the
	// guest has to wait, too, and everything else goes on. Once one fails, what follows
	// is lost.
	Serial io.Writer
	// Log, if any, gets every input. It was begun at the machine's count.
	Log *machine.LogWriter
	// HashEvery has the machine's digest logged each time so many instructions have
	// passed; 0: never.
	HashEvery uint64
	// Restarts has a guest that restarts go on in this life, and its log, by the machine's
	// Reload; else its restart is the machine's end.
	Restarts bool
	// LetGo, if any, has the requests that disks have under way end now, if they can: it is
	// called when a life was ended by its context, which would else wait for them. A disk
	// that is far away may take minutes.
	LetGo func()
	// Gate, if any, is what the machine's outputs leave by: Live.Leave. Attach puts one there later.
	Gate Gate
	// Resumed is how the life goes on, of a machine that another process has lived.
	Resumed *Resumed
	Logger  *slog.Logger
}

// Bounds of what waits for the loop.
const (
	framesMax     = 1024    // of a card
	frameBytesMax = 4 << 20 // of a card; the last one that is taken may go over it
	typedMax      = 64 << 10
	// flushEvery is how long an entry of the log may wait in memory, in nanoseconds: what a
	// recorder that is killed loses at most.
	flushEvery = 1_000_000_000
)

// Live is a machine that lives now.
type Live struct {
	m   *machine.Machine
	opt Options

	mu     sync.Mutex
	queue  []device.Input
	calls  []func()
	frames []arrivals // by card
	typed  int
	ended  bool

	bell  chan struct{} // something is in the queue
	tasks sync.WaitGroup

	// Of the loop.
	pacer     *machine.Pacer
	executed  uint64 // at the last synchronisation
	hashAt    uint64
	busy      uint64 // nanoseconds of executing since the gate was told
	delivered uint64 // the count of the last input
	gate      Gate
	flushed   uint64 // the host's time when the log was last handed to its file
	clock     *hostClock
	serial    *serial
	counters  Counters

	reads buffers
}

// Counters are what a machine has done in this life.
type Counters struct {
	Inputs   uint64        `json:"inputs"`
	Outputs  uint64        `json:"outputs"`
	Syncs    uint64        `json:"syncs"` // changes of the clock's rate
	Restarts int           `json:"restarts"`
	LogBytes int64         `json:"log_bytes"`
	Lag      time.Duration `json:"lag_ns"` // that the guest's clock is behind by stalls
}

// New makes a life for a machine. Run lives it.
func New(m *machine.Machine, o Options) (*Live, error) {
	cfg := m.Config()
	if len(o.Disks) != len(cfg.Disks) || len(o.Wires) != len(cfg.Nets) {
		return nil, fault.New(fault.Invalid, "a machine of %d disks and %d network cards was given %d and %d", len(cfg.Disks), len(cfg.Nets), len(o.Disks), len(o.Wires))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Serial == nil {
		o.Serial = io.Discard
	}
	l := &Live{m: m, opt: o, gate: o.Gate, bell: make(chan struct{}, 1), frames: make([]arrivals, len(cfg.Nets))}
	for i := range l.frames {
		l.frames[i].room.L = &l.mu
	}
	return l, nil
}

// put queues an input for the loop.
func (l *Live) put(in device.Input) {
	l.mu.Lock()
	if !l.ended {
		l.queue = append(l.queue, in)
	}
	l.mu.Unlock()
	l.ring()
}

func (l *Live) ring() {
	select {
	case l.bell <- struct{}{}:
	default:
	}
}

// Type types on the serial port, and returns how many bytes there was room for.
func (l *Live) Type(p []byte) int {
	l.mu.Lock()
	n := min(len(p), typedMax-l.typed)
	if n > 0 && !l.ended {
		l.typed += n
		l.queue = append(l.queue, device.Input{Port: machine.PortSerial, Kind: devices.UARTData, Data: append([]byte(nil), p[:n]...)})
	}
	l.mu.Unlock()
	l.ring()
	return n
}

// Resize tells the guest that a disk has another size, in bytes: a multiple of
// block.SectorSize. Before Run, or any time.
func (l *Live) Resize(disk int, size int64) {
	l.put(device.Input{Port: l.m.DiskPort(disk), Kind: virtio.BlockResized, Data: binary.LittleEndian.AppendUint64(nil, uint64(size))})
}

// PressPower presses the power button.
func (l *Live) PressPower() { l.put(device.Input{Port: l.m.ButtonPort(), Kind: virtio.ButtonPress}) }

// Call has the loop call do between two instructions, at a count for which nothing was
// delivered yet; do may look at the machine and save it, and change nothing. It returns when that is
// done, or the life has ended: false.
func (l *Live) Call(do func(m *machine.Machine)) bool {
	done := make(chan struct{})
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.calls = append(l.calls, func() { defer close(done); do(l.m) })
	l.mu.Unlock()
	l.ring()
	<-done
	return true
}

// Counters returns what was counted so far.
func (l *Live) Counters() (c Counters) {
	if !l.Call(func(*machine.Machine) { c = l.counted() }) {
		c = l.counted()
	}
	return c
}

func (l *Live) counted() Counters {
	c := l.counters
	c.Lag = time.Duration(l.pacer.Lag())
	if l.opt.Log != nil {
		c.LogBytes = l.opt.Log.Bytes
	}
	return c
}

// Run lives until the guest ends its machine, or ctx ends, and returns how it ended; the
// machine is Running when ctx ended. What it had asked of the world is waited for, short of LetGo, and
// that what it has said on its serial port was read, until ctx ends. Fails when the log cannot be written: the
// machine must not go on then.
func (l *Live) Run(ctx context.Context) (end machine.End, err error) {
	defer context.AfterFunc(ctx, l.ring)()
	began, guest := bootTime(), l.m.Now()
	if r := l.opt.Resumed; r != nil {
		began, guest = r.Host, r.Guest
	}
	l.clock = newHostClock(bootTime, began)
	l.pacer = machine.NewPacer(began, guest, l.rate())
	l.executed = l.m.Count() - l.m.Idled()
	l.hashAt = l.m.Count() + l.opt.HashEvery
	l.serial = newSerial(l.opt.Serial, l.ring)
	for _, out := range l.m.Pending() {
		l.dispatch(out)
	}
	if r := l.opt.Resumed; r != nil {
		l.Leave(r.Outputs)
	}
	err = l.leaves(l.loop(ctx))
	l.finish()
	if e := l.serial.end(ctx); e != nil {
		l.opt.Logger.Debug("the serial port's output is lost", slog.Any("error", e))
	}
	if l.opt.LetGo != nil {
		if err != nil { // nobody waits for it
			l.opt.LetGo()
		} else {
			defer context.AfterFunc(ctx, l.opt.LetGo)()
		}
	}
	l.tasks.Wait()
	if l.opt.Log != nil {
		if e := l.opt.Log.End(l.m.Count()); err == nil {
			err = e
		}
	}
	return l.m.End(), err
}

func (l *Live) rate() uint64 {
	c := l.m.Clock()
	return c.Rate()
}

// finish lets nobody in any more.
func (l *Live) finish() {
	l.mu.Lock()
	l.ended = true
	calls := l.calls
	l.calls, l.queue = nil, nil
	for i := range l.frames {
		l.frames[i].waiting = nil
		l.frames[i].room.Broadcast()
	}
	l.mu.Unlock()
	for _, c := range calls {
		c()
	}
}

// Of the loop's turns, in nanoseconds.
const (
	turnNS  = 100_000   // of executing, between looks at the queue
	aheadNS = 2_000_000 // that the guest may be ahead of its line
	waitNS  = 1_000_000_000
)

func (l *Live) loop(ctx context.Context) error {
	idle := false
	for ctx.Err() == nil {
		if l.gate != nil {
			if stands, err := l.stands(); err != nil {
				return err
			} else if stands {
				continue
			}
		}
		came, err := l.deliverAll()
		if err != nil {
			return err
		}
		if over, err := l.over(); over || err != nil { // by the instruction that a call costs
			return err
		}
		idle = idle && !came // it may have what it waits for
		now := l.clock.now()
		if err := l.sync(now); err != nil {
			return err
		}
		guest, target := l.m.Now(), l.pacer.Target(now)
		var stop machine.Stop
		switch {
		case l.serial.full():
			l.wait(waitNS)
			continue
		case idle:
			wake := l.wake()
			if target < wake {
				l.wait(wake - target)
			}
			// Time has passed: as much as has, or up to what woke it. What is far beyond that
			// nobody was there for: the pacer takes it for a stall.
			clock := l.m.Clock()
			to := min(l.pacer.Target(l.clock.now()), wake+machine.StallMin)
			stop = l.m.Run(max(clock.CountOf(to), l.m.Count()))
		case guest > target+aheadNS:
			l.wait(guest - target)
			continue
		default:
			stop = l.m.RunBusy(l.m.Count() + l.turn())
			took := l.clock.now() - now
			l.busy += took
			l.pacer.Executed(took)
		}
		l.dispatchAll()
		if over, err := l.over(); over || err != nil {
			return err
		}
		idle = stop == machine.StopIdle
	}
	return nil
}

// over tells whether the machine has ended. One that restarts begins anew, if it may.
func (l *Live) over() (bool, error) {
	if l.m.End() == machine.Running {
		return false, nil
	}
	l.dispatchAll() // what it has said before comes first
	if l.m.End() != machine.Restarts || !l.opt.Restarts {
		return true, nil
	}
	l.counters.Restarts++
	return false, l.deliver(&device.Input{Port: machine.PortMachine, Kind: machine.Restart, Data: Seed()})
}

// turn is how many instructions a turn of executing has.
func (l *Live) turn() uint64 {
	n := uint64(turnNS) << 32 / l.rate()
	if l.opt.HashEvery > 0 && l.hashAt > l.m.Count() {
		n = min(n, l.hashAt-l.m.Count())
	}
	return max(n, 1000)
}

// wake is the guest's time at which a machine that waits goes on by itself, or is to be
// looked at.
func (l *Live) wake() (ns uint64) {
	at := l.m.WakeAt()
	if at == math.MaxUint64 {
		return l.m.Now() + waitNS
	}
	clock := l.m.Clock()
	return clock.Now(at)
}

// wait waits for something in the queue, for at most so long.
func (l *Live) wait(ns uint64) {
	t := time.NewTimer(time.Duration(min(ns, waitNS)))
	defer t.Stop()
	select {
	case <-l.bell:
	case <-t.C:
	}
}

// sync keeps the guest's time.
func (l *Live) sync(now uint64) error {
	if l.opt.Log != nil && now-l.flushed >= flushEvery {
		l.flushed = now
		if err := l.opt.Log.Flush(); err != nil {
			return err
		}
	}
	if !l.pacer.Due(now) {
		return nil
	}
	executed := l.m.Count() - l.m.Idled()
	rate, change := l.pacer.Sync(now, l.m.Now(), executed-l.executed)
	l.executed = executed
	if !change {
		return nil
	}
	l.counters.Syncs++
	return l.deliver(&device.Input{Port: machine.PortMachine, Kind: machine.ClockRate, ID: rate})
}

// deliverAll takes what is in the queue, and tells whether there was something. It may
// end the machine, and what was queued is not delivered then.
func (l *Live) deliverAll() (came bool, err error) {
	l.mu.Lock()
	queue, calls := l.queue, l.calls
	l.queue, l.calls, l.typed = nil, nil, 0
	l.mu.Unlock()
	if len(calls) > 0 {
		// Nothing may have been delivered for the count that a call sees.
		l.m.Run(l.m.Count() + 1)
		for _, c := range calls {
			c()
		}
		if l.m.End() != machine.Running {
			// By that instruction: nothing may come after it, but after a restart.
			l.mu.Lock()
			l.queue = append(queue, l.queue...)
			l.mu.Unlock()
			return false, nil
		}
	}
	if l.opt.HashEvery > 0 && l.m.Count() >= l.hashAt && l.opt.Log != nil {
		l.hashAt = l.m.Count() + l.opt.HashEvery
		if err := l.opt.Log.Hash(l.m.Count(), l.m.Hash()); err != nil {
			return false, err
		}
	}
	for i := range queue {
		disk := l.isDisk(queue[i].Port)
		if l.gate != nil && disk {
			queue[i].Data = l.reads.keep(queue[i].Data)
		}
		if err := l.deliver(&queue[i]); err != nil {
			return false, err
		}
		if l.gate == nil && disk {
			l.reads.give(queue[i].Data) // it is in the log and in the guest's memory
		}
	}
	brought, err := l.deliverFrames()
	return len(queue) > 0 || brought, err
}

// deliver logs an input, and then delivers it.
func (l *Live) deliver(in *device.Input) error {
	in.At = l.m.Count()
	l.counters.Inputs++
	if l.opt.Log != nil {
		if err := l.opt.Log.Input(in); err != nil {
			return err
		}
	}
	l.delivered = in.At
	err := l.m.Deliver(in)
	if l.gate != nil && err == nil {
		l.gate.Delivered(in)
	}
	return err
}

// dispatchAll does in the world all that the machine has asked for, or has the gate do it.
func (l *Live) dispatchAll() {
	list := l.m.Outputs()
	l.counters.Outputs += uint64(len(list))
	if l.gate != nil {
		l.gate.Ran(l.m.Count(), l.busy, list)
		l.busy = 0
		return
	}
	for _, out := range list {
		l.dispatch(out)
	}
}

// dispatch does in the world what the machine has asked for.
func (l *Live) dispatch(out device.Output) {
	m := l.m
	cfg := m.Config()
	switch {
	case out.Port == machine.PortSerial:
		l.serial.put(out.Data)
	case l.isDisk(out.Port):
		i := int(out.Port - m.DiskPort(0))
		l.tasks.Go(func() { l.put(l.request(l.opt.Disks[i], out)) })
	case out.Port < m.NetPort(len(cfg.Nets)):
		if w := l.opt.Wires[int(out.Port-m.NetPort(0))]; w != nil {
			w.Send(out.Data)
		}
	case out.Port == m.EntropyPort():
		p := make([]byte, min(out.Length, virtio.EntropyMax))
		_, _ = rand.Read(p) // never fails
		l.put(device.Input{Port: out.Port, Kind: virtio.EntropyAnswer, ID: out.ID, Data: p})
	}
}

// seedBytes is the size of a Seed.
const seedBytes = 64

// Seed returns fresh randomness for a machine's Config.
func Seed() []byte {
	p := make([]byte, seedBytes)
	_, _ = rand.Read(p) // never fails
	return p
}
