package machine

import (
	"errors"
	"slices"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/memory"
	"steadfast/compute/riscv"
	"steadfast/compute/riscv/boot"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// The memory map of a machine with a RISC-V processor. It is that of QEMU's virt as far
// as both have the same things.
const (
	rtcBase    = 0x00101000
	plicBase   = 0x0c000000
	uartBase   = 0x10000000
	virtioBase = 0x10001000
	ramBase    = 0x80000000

	deviceSize = 0x1000

	uartLine = 10
	rtcLine  = 11
	// The first virtio devices have the lines below the serial port's, the others those
	// from lineHigh on.
	linesLow  = 8
	lineHigh  = 16
	plicLines = 63
)

// virtioLine is the interrupt line of the i-th virtio device.
func virtioLine(i int) int {
	if i < linesLow {
		return i + 1
	}
	return lineHigh + i - linesLow
}

// riscvBoard is the interrupt controller, and the bus in front of it.
type riscvBoard struct {
	m    *Machine
	hart *riscv.Hart
	plic *riscv.PLIC
}

func (b *riscvBoard) raise(line int, up bool)         { b.plic.Raise(line, up) }
func (b *riscvBoard) save(e *device.Encoder)          { b.plic.Save(e) }
func (b *riscvBoard) restore(d *device.Decoder) error { return b.plic.Restore(d) }

// Load implements riscv.Bus.
func (b *riscvBoard) Load(addr uint64, size int) (uint64, bool) {
	if off := addr - plicBase; off < riscv.PLICSize {
		return b.plic.Load(off, size), true
	}
	return b.m.load(addr, size)
}

// Store implements riscv.Bus.
func (b *riscvBoard) Store(addr uint64, size int, v uint64) bool {
	if off := addr - plicBase; off < riscv.PLICSize {
		b.plic.Store(off, size, v)
		return true
	}
	return b.m.store(addr, size, v)
}

// ConsoleWrite implements riscv.Calls: it is the serial port's line, too.
func (b *riscvBoard) ConsoleWrite(p []byte) int {
	b.m.emit(PortSerial, device.Output{Kind: devices.UARTData, Data: append([]byte(nil), p...)})
	return len(p)
}

// ConsoleRead implements riscv.Calls: what is typed is the serial port's.
func (b *riscvBoard) ConsoleRead([]byte) int { return 0 }

// SystemReset implements riscv.Calls.
func (b *riscvBoard) SystemReset(kind riscv.Reset, _ uint32) {
	if kind == riscv.ResetShutdown {
		b.m.finish(PoweredOff)
		return
	}
	b.m.finish(Restarts)
}

// interpreter is a hart as a Processor.
type interpreter struct{ *riscv.Hart }

// Run implements Processor.
func (i interpreter) Run(limit uint64) Reason {
	switch i.Hart.Run(limit) {
	case riscv.StopIdle:
		return ReasonIdle
	case riscv.StopAsked:
		return ReasonAsked
	case riscv.StopWedged:
		// Traps have no count: to be wedged has one, so that who comes to the count before
		// stops before it, and what it left is the state of one count only.
		i.Pass()
		return ReasonWedged
	case riscv.StopLimit:
	}
	return ReasonLimit
}

// New makes up a machine whose memory is all zeros. Load or Restore is to follow, and
// Release at the end. Fails with fault.Invalid, or fault.Full without memory for it.
func New(cfg Config) (*Machine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ram, err := memory.New(ramBase, cfg.Memory)
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, ram: ram, clock: Clock{rate: rateStart}, wall: cfg.Wall, alarm: never}
	b := &riscvBoard{m: m}
	b.hart = riscv.New(ram, b, &m.clock, b, riscv.Options{})
	b.plic = riscv.NewPLIC(b.hart.SetExternal)
	m.board, m.proc = b, interpreter{b.hart}
	m.hash.init(ram)
	if err := m.addDevices(); err != nil {
		return nil, errors.Join(err, ram.Release())
	}
	return m, nil
}

// Hart is the processor, to be looked at and not to be run; nil of a machine with another
// kind.
func (m *Machine) Hart() *riscv.Hart {
	if i, ok := m.proc.(interpreter); ok {
		return i.Hart
	}
	return nil
}

// addDevices makes up the devices, in the order of their ports.
func (m *Machine) addDevices() error {
	m.parts = []part{{}}
	add := func(base uint64, line int, make func(b device.Board) (device.Device, error)) error {
		d, err := make(&port{m, device.Port(len(m.parts)), line})
		if err == nil {
			w, _ := d.(worker)
			m.parts = append(m.parts, part{d, base, line, w})
		}
		return err
	}
	slot := 0
	virtual := func(make func(b device.Board) (device.Device, error)) error {
		i := slot
		slot++
		return add(virtioBase+uint64(i)*deviceSize, virtioLine(i), make)
	}
	list := []error{
		add(uartBase, uartLine, func(b device.Board) (device.Device, error) { return devices.NewUART(b), nil }),
		add(rtcBase, rtcLine, func(b device.Board) (device.Device, error) {
			m.rtc = devices.NewRTC(b)
			return m.rtc, nil
		}),
	}
	for _, d := range m.cfg.Disks {
		list = append(list, virtual(func(b device.Board) (device.Device, error) {
			return virtio.NewBlock(b, m.ram, virtio.BlockOptions{Size: d.Size, ReadOnly: d.ReadOnly, Serial: d.Serial})
		}))
	}
	for _, n := range m.cfg.Nets {
		list = append(list, virtual(func(b device.Board) (device.Device, error) {
			return virtio.NewNet(b, m.ram, virtio.NetOptions{MAC: n.MAC, MTU: n.MTU})
		}))
	}
	list = append(list,
		virtual(func(b device.Board) (device.Device, error) { return virtio.NewEntropy(b, m.ram), nil }),
		virtual(func(b device.Board) (device.Device, error) { return virtio.NewButton(b, m.ram), nil }))
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// Load puts a kernel and an initial RAM disk (or none) into a machine that New has made
// up. Fails with fault.Invalid.
func (m *Machine) Load(kernel, initrd []byte) error {
	b, start, err := m.fill(kernel, initrd)
	if err == nil {
		b.hart.Reset(start.PC, start.Hart, start.Tree)
	}
	return err
}

// fill puts a kernel and its world into memory that is all zeros.
func (m *Machine) fill(kernel, initrd []byte) (b *riscvBoard, start boot.Start, err error) {
	b, ok := m.board.(*riscvBoard)
	if !ok {
		return nil, start, fault.New(fault.Internal, "a machine without a processor to load for")
	}
	k, err := boot.ParseKernel(kernel)
	if err != nil {
		return nil, start, err
	}
	start, err = boot.Load(m.ram, m.described(), k, initrd, boot.Chosen{Arguments: m.cfg.CommandLine, Seed: m.cfg.Seed})
	return b, start, err
}

// restart begins the guest anew, as a board's reset line does: memory is zeros, devices are
// as they are made up, but for what the world owes a disk and what the network is. The
// count, the guest's time and its wall clock go on.
func (m *Machine) restart(seed []byte) error {
	if m.end != Restarts {
		return nil // it makes no sense
	}
	if m.Reload == nil {
		return fault.New(fault.NotFound, "the guest restarts, and what it begins with is not known")
	}
	kernel, initrd, err := m.Reload()
	if err != nil {
		return err
	}
	m.cfg.Seed = slices.Clone(seed)
	if err := m.cfg.check(); err != nil {
		return err
	}
	m.hash.zero()
	b, start, err := m.fill(kernel, initrd)
	if err != nil {
		return err
	}
	b.plic = riscv.NewPLIC(b.hart.SetExternal)
	m.parts[PortSerial].Device = devices.NewUART(&port{m, PortSerial, uartLine})
	m.rtc = devices.NewRTC(&port{m, PortRTC, rtcLine})
	m.parts[PortRTC].Device = m.rtc
	for i := range m.parts[portDisks:] {
		virtio.Reset(m.parts[portDisks:][i].Device)
	}
	m.end = Running
	b.hart.Restart(start.PC, start.Hart, start.Tree)
	return nil
}

// described is the machine as the guest is told of it.
func (m *Machine) described() boot.Machine {
	at := func(p part) boot.Device {
		return boot.Device{Region: boot.Region{Base: p.base, Size: deviceSize}, Interrupt: uint32(p.interrupt)}
	}
	d := boot.Machine{
		RAM:  boot.Region{Base: ramBase, Size: m.cfg.Memory},
		PLIC: boot.Region{Base: plicBase, Size: riscv.PLICSize}, Sources: plicLines,
		UART: at(m.parts[PortSerial]), RTC: at(m.parts[PortRTC]),
	}
	for _, p := range m.parts[portDisks:] {
		d.Virtio = append(d.Virtio, at(p))
	}
	return d
}
