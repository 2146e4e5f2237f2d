package machine

import (
	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// Stop is why Run returned.
type Stop uint8

// Reasons to return from Run.
const (
	// StopLimit: the count is what was asked for.
	StopLimit Stop = iota
	// StopIdle: so it is, and the processor waits for an interrupt: until Machine.WakeAt
	// nothing happens unless an Input comes.
	StopIdle
	// StopEnded: the machine has ended; see Machine.End.
	StopEnded
	// StopSpent: the devices have done so much for the guest that the caller should take
	// Outputs, and look at the world, before it goes on. It is a bound on the host's memory
	// and time, and no event in the guest's life: a run that is cut by it is the same run.
	StopSpent
)

// End is how a machine ended.
type End uint8

// Ends of a machine.
const (
	Running End = iota
	// PoweredOff: the guest has switched itself off.
	PoweredOff
	// Restarts: the guest wants to begin anew.
	Restarts
	// Wedged: the processor can do nothing any more: its trap handler traps.
	Wedged
)

// String names the end.
func (e End) String() string {
	switch e {
	case Running:
		return "running"
	case PoweredOff:
		return "powered off"
	case Restarts:
		return "restarts"
	case Wedged:
		return "wedged"
	}
	return "?"
}

// Processor is what executes the guest: an interpreter, or another engine that does the
// same to every bit. It counts instructions; its time is the machine's Clock.
type Processor interface {
	// Run executes until the count is limit, or returns before for the reason it says.
	Run(limit uint64) Reason
	Count() uint64
	// IdleUntil is, of a processor that waits, the count at which its timer ends that.
	IdleUntil() uint64
	// Idle lets a processor that waits come to a later count.
	Idle(to uint64)
	// Stop has Run return ReasonAsked. It is called during Run, by a device.
	Stop()
	Save(e *device.Encoder)
	Restore(d *device.Decoder) error
}

// Reason is why a Processor returned.
type Reason uint8

// Reasons of a Processor.
const (
	ReasonLimit Reason = iota
	ReasonIdle
	ReasonAsked
	ReasonWedged
)

// Ports of what every machine has; disks follow, then network cards, then the source of
// randomness and the power button.
const (
	PortMachine device.Port = 0
	PortSerial  device.Port = 1
	PortRTC     device.Port = 2
	portDisks   device.Port = 3
)

// Kinds of Input of PortMachine.
const (
	// ClockRate changes the rate of the clock: ID is units of 2^-32 nanoseconds an
	// instruction. It is how a guest's time is kept with the host's.
	ClockRate uint8 = 1
	// WallSet sets the wall clock: ID is nanoseconds since 1970, UTC.
	WallSet uint8 = 2
	// Restart begins the guest anew, of a machine whose end is Restarts: Data is the seed
	// that Config.Seed is then. See Machine.Reload.
	Restart uint8 = 3
)

// Machine is a virtual machine.
type Machine struct {
	cfg   Config
	ram   *memory.RAM
	clock Clock
	proc  Processor
	parts []part // by port; of PortMachine there is none
	board board  // what is of the processor's kind
	rtc   *devices.RTC

	// wall is the wall clock at the clock's zero, in nanoseconds since 1970.
	wall uint64
	out  []device.Output
	end  End
	// alarm is the count at which the RTC's alarm is due.
	alarm uint64
	// idled is how many counts passed while the processor waited, since New, and spent what
	// devices have done since the last call of Run. They are no part of the state.
	idled uint64
	spent uint64

	hash hasher

	// Reload returns the kernel and the initial RAM disk (or none) that the guest has
	// begun with, for a Restart. They are no part of the state: who restores a machine
	// that is to restart sets it.
	Reload func() (kernel, initrd []byte, err error)

	// Leak, if it is set, is added to what the guest reads as the wall clock: a source
	// of chance, for a check that must notice.
	Leak func() uint64
}

// part is a device and where it is.
type part struct {
	device.Device
	base      uint64
	interrupt int
	// worker is the device, if it can do much for one access.
	worker worker
}

// worker is a device that says how much it has done since it was last asked: about as many
// units as bytes that were moved. It is no part of its state.
type worker interface{ Spent() uint64 }

// What an Output costs besides its bytes, and what a run may cost before it is cut. The
// last access may go over it, by what a device bounds itself to: a queue's chains.
const (
	outputCost = 128
	spentMax   = 4 << 20
)

// board is the interrupt controller and what else comes with a kind of processor.
type board interface {
	// raise sets the level of a line of the interrupt controller.
	raise(line int, up bool)
	save(e *device.Encoder)
	restore(d *device.Decoder) error
}

// port is a device's view of the machine: device.Board.
type port struct {
	m      *Machine
	number device.Port
	line   int
}

// Emit implements device.Board.
func (p *port) Emit(out device.Output) { p.m.emit(p.number, out) }

// Interrupt implements device.Board.
func (p *port) Interrupt(up bool) { p.m.board.raise(p.line, up) }

// Now implements device.Board.
func (p *port) Now() uint64 { return p.m.Now() }

// Wall implements device.Board.
func (p *port) Wall() uint64 {
	t := p.m.wall + p.m.Now()
	if p.m.Leak != nil {
		t += p.m.Leak()
	}
	return t
}

func (m *Machine) emit(n device.Port, out device.Output) {
	out.At, out.Port = m.proc.Count(), n
	m.out = append(m.out, out)
	m.spend(outputCost + uint64(len(out.Data)))
}

// spend counts what the host does for the guest, and has Run look when it is enough.
func (m *Machine) spend(n uint64) {
	if m.spent += n; m.spent >= spentMax {
		m.proc.Stop()
	}
}

// Release gives the machine's memory back. It is not used any more.
func (m *Machine) Release() error { return m.ram.Release() }

// Config returns what the machine was made up as.
func (m *Machine) Config() Config { return m.cfg }

// RAM is the guest's memory.
func (m *Machine) RAM() *memory.RAM { return m.ram }

// Count is how many instructions the guest has executed, those included that it would
// have while it waited.
func (m *Machine) Count() uint64 { return m.proc.Count() }

// Now is the guest's time in nanoseconds since the machine began.
func (m *Machine) Now() uint64 { return m.clock.Now(m.proc.Count()) }

// Clock returns the guest's clock as it is now.
func (m *Machine) Clock() Clock { return m.clock }

// End tells how the machine ended, or that it runs.
func (m *Machine) End() End { return m.end }

// WakeAt is, of a machine that idles, the count at which it goes on by itself, the
// largest uint64 if it does not.
func (m *Machine) WakeAt() uint64 { return min(m.proc.IdleUntil(), m.alarm) }

// DiskPort is the port of a disk of Config, NetPort that of a network card.
func (m *Machine) DiskPort(i int) device.Port { return portDisks + device.Port(i) }

// NetPort is the port of a network card of Config.
func (m *Machine) NetPort(i int) device.Port { return portDisks + device.Port(len(m.cfg.Disks)+i) }

// EntropyPort is the port of the source of randomness.
func (m *Machine) EntropyPort() device.Port { return m.NetPort(len(m.cfg.Nets)) }

// ButtonPort is the port of the power button.
func (m *Machine) ButtonPort() device.Port { return m.EntropyPort() + 1 }

// Outputs returns what went out since the last call, in order.
func (m *Machine) Outputs() []device.Output {
	out := m.out
	m.out = nil
	return out
}

// Pending returns what the world has been asked for and has not answered, by port and ID:
// who restores a machine sees to it as if it had been emitted now.
func (m *Machine) Pending() (list []device.Output) {
	for n, p := range m.parts {
		asker, ok := p.Device.(interface{ Pending() []device.Output })
		if !ok {
			continue
		}
		for _, out := range asker.Pending() {
			out.At, out.Port = m.Count(), device.Port(n)
			list = append(list, out)
		}
	}
	return list
}

// Deliver gives the machine an Input, which is of the present count: fault.Invalid if
// it is not, and nothing was done. What a device does not understand it ignores. A Restart
// fails as Reload and Load do, and the machine is not to be used then.
func (m *Machine) Deliver(in *device.Input) error {
	if in.At != m.Count() {
		return fault.New(fault.Invalid, "an input of count %d at count %d", in.At, m.Count())
	}
	if in.Port == PortMachine {
		switch in.Kind {
		case ClockRate:
			m.clock.SetRate(in.At, in.ID)
		case WallSet:
			m.wall = in.ID - m.Now()
		case Restart:
			if err := m.restart(in.Data); err != nil {
				return err
			}
		}
		m.setAlarm()
		return nil
	}
	if int(in.Port) < len(m.parts) {
		m.parts[in.Port].Deliver(in)
		m.setAlarm()
	}
	return nil
}

// setAlarm looks at when the RTC is to be woken.
func (m *Machine) setAlarm() {
	m.alarm = never
	if ns, ok := m.rtc.Deadline(); ok {
		m.alarm = m.clock.CountOf(ns)
	}
}

// Idled is how many counts have passed without an instruction being executed, since the
// machine was made up or restored.
func (m *Machine) Idled() uint64 { return m.idled }

// Run takes the machine to a count, unless it ends before, or returns StopSpent on the way:
// a processor that waits comes there without executing anything. What has gone out is in
// Outputs.
func (m *Machine) Run(limit uint64) Stop { return m.run(limit, true) }

// RunBusy is Run that returns, with StopIdle, as soon as the processor waits: the count is
// that of its last instruction then.
func (m *Machine) RunBusy(limit uint64) Stop { return m.run(limit, false) }

func (m *Machine) run(limit uint64, through bool) Stop {
	idle := false
	m.spent = 0
	for m.end == Running {
		count := m.Count()
		if m.alarm <= count {
			m.rtc.Fire(m.Now())
			m.setAlarm()
			if m.alarm <= count { // it fires once
				m.alarm = never
			}
		}
		if count >= limit {
			if idle {
				return StopIdle
			}
			return StopLimit
		}
		if m.spent >= spentMax {
			return StopSpent
		}
		idle = false
		switch m.proc.Run(min(limit, m.alarm)) {
		case ReasonLimit, ReasonAsked:
		case ReasonIdle:
			if !through {
				return StopIdle
			}
			m.proc.Idle(min(limit, m.WakeAt()))
			m.idled += m.Count() - count
			idle = true
		case ReasonWedged:
			m.end = Wedged
		}
	}
	return StopEnded
}

// finish is how the guest ends the machine, during Run.
func (m *Machine) finish(e End) {
	m.end = e
	m.proc.Stop()
}

// load and store are the bus: ok is false where nothing is.
func (m *Machine) load(addr uint64, size int) (uint64, bool) {
	p := m.find(addr)
	if p == nil {
		return 0, false
	}
	return p.Load(addr-p.base, size), true
}

func (m *Machine) store(addr uint64, size int, v uint64) bool {
	p := m.find(addr)
	if p == nil {
		return false
	}
	p.Store(addr-p.base, size, v)
	if p.worker != nil {
		m.spend(p.worker.Spent())
	}
	if p.Device == m.rtc {
		m.setAlarm()
		m.proc.Stop() // the alarm may be due before the limit
	}
	return true
}

// find returns the device at an address. They are few, and in order of their ports.
func (m *Machine) find(addr uint64) *part {
	for i := range m.parts {
		if p := &m.parts[i]; p.Device != nil && addr-p.base < deviceSize {
			return p
		}
	}
	return nil
}
