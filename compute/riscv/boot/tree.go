package boot

import (
	"fmt"
	"strings"

	"steadfast/fault"
)

// Region is a stretch of guest physical addresses.
type Region struct{ Base, Size uint64 }

// Device is a device at a place on the bus, with its interrupt at the controller.
type Device struct {
	Region
	Interrupt uint32
}

// Machine is what a device tree says a machine has.
type Machine struct {
	RAM     Region
	PLIC    Region
	Sources uint32 // the controller's interrupts: 1 to Sources
	UART    Device
	RTC     Device
	Virtio  []Device // in the order in which a guest is to find them
}

// Chosen is what a tree says to the kernel that is started.
type Chosen struct {
	Arguments string
	Initrd    Region // of no size if there is none
	// Seed begins the kernel's random numbers: none, or at least SeedMin bytes. It is the
	// caller's, who has it in the log.
	Seed []byte
}

// SeedMin is the least that a seed is worth to Linux, in bytes; SeedMax bounds it.
const (
	SeedMin = 32
	SeedMax = 4096
)

// argumentsMax is Linux's COMMAND_LINE_SIZE on riscv, with the zero at its end.
const argumentsMax = 1024

// TimebaseHz is the rate of the time CSR.
const TimebaseHz = 10_000_000

// cboBlock is what cbo.zero clears, in bytes.
const cboBlock = 64

// base and extensions are what the processor knows: ISA manual, naming conventions.
const base = "rv64i"

var extensions = []string{
	"i", "m", "a", "f", "d", "c", "zicboz", "zicntr", "zicsr", "zifencei", "zba", "zbb", "zbs", "sstc",
}

// isa is the older way to say base and extensions, in one string.
func isa() string {
	s := strings.TrimSuffix(base, "i")
	for _, x := range extensions {
		if len(x) > 1 {
			s += "_"
		}
		s += x
	}
	return s
}

// Handles of the nodes that others refer to.
const (
	handleCPU = 1 + iota
	handleCPUInterrupts
	handlePLIC
)

// Interrupts of a hart, as mcause numbers them.
const (
	externalM = 11
	externalS = 9
)

// Tree returns a machine's flattened device tree.
func Tree(m Machine, c Chosen) ([]byte, error) {
	switch {
	case len(c.Arguments) >= argumentsMax:
		return nil, fault.New(fault.Invalid, "kernel arguments of %d bytes: Linux takes less than %d", len(c.Arguments), argumentsMax)
	case strings.ContainsRune(c.Arguments, 0):
		return nil, fault.New(fault.Invalid, "kernel arguments with a zero byte")
	case len(c.Seed) > 0 && (len(c.Seed) < SeedMin || len(c.Seed) > SeedMax):
		return nil, fault.New(fault.Invalid, "a seed of %d bytes: it must be %d to %d", len(c.Seed), SeedMin, SeedMax)
	}
	f := newFDT()
	f.node("", func() {
		f.cells("#address-cells", 2)
		f.cells("#size-cells", 2)
		f.text("compatible", "steadfast,machine", "riscv-virtio")
		f.text("model", "Steadfast virtual machine")
		serial := fmt.Sprintf("serial@%x", m.UART.Base)
		f.node("aliases", func() { f.text("serial0", "/soc/"+serial) })
		f.chosen(c, "/soc/"+serial)
		f.node(fmt.Sprintf("memory@%x", m.RAM.Base), func() {
			f.text("device_type", "memory")
			f.wide("reg", m.RAM.Base, m.RAM.Size)
		})
		f.cpus()
		f.node("soc", func() {
			f.cells("#address-cells", 2)
			f.cells("#size-cells", 2)
			f.text("compatible", "simple-bus")
			f.prop("ranges", nil)
			f.plic(m)
			f.node(serial, func() {
				f.text("compatible", "ns16550a")
				f.device(m.UART)
				f.cells("clock-frequency", 3_686_400)
			})
			f.node(fmt.Sprintf("rtc@%x", m.RTC.Base), func() {
				f.text("compatible", "google,goldfish-rtc")
				f.device(m.RTC)
			})
			for _, v := range m.Virtio {
				f.node(fmt.Sprintf("virtio_mmio@%x", v.Base), func() {
					f.text("compatible", "virtio,mmio")
					f.device(v)
				})
			}
		})
	})
	return f.blob(), nil
}

func (f *fdt) chosen(c Chosen, console string) {
	f.node("chosen", func() {
		f.text("bootargs", c.Arguments)
		f.text("stdout-path", console)
		if c.Initrd.Size > 0 {
			f.wide("linux,initrd-start", c.Initrd.Base)
			f.wide("linux,initrd-end", c.Initrd.Base+c.Initrd.Size)
		}
		if len(c.Seed) > 0 {
			f.prop("rng-seed", c.Seed)
		}
	})
}

func (f *fdt) cpus() {
	f.node("cpus", func() {
		f.cells("#address-cells", 1)
		f.cells("#size-cells", 0)
		f.cells("timebase-frequency", TimebaseHz)
		f.node("cpu@0", func() {
			f.text("device_type", "cpu")
			f.text("compatible", "riscv")
			f.cells("reg", 0)
			f.text("status", "okay")
			f.text("riscv,isa", isa())
			f.text("riscv,isa-base", base)
			f.text("riscv,isa-extensions", extensions...)
			f.cells("riscv,cboz-block-size", cboBlock)
			f.text("mmu-type", "riscv,sv39")
			f.cells("phandle", handleCPU)
			f.node("interrupt-controller", func() {
				f.text("compatible", "riscv,cpu-intc")
				f.cells("#interrupt-cells", 1)
				f.cells("#address-cells", 0)
				f.prop("interrupt-controller", nil)
				f.cells("phandle", handleCPUInterrupts)
			})
		})
	})
}

// plic has two contexts, as hart 0 would with M mode; only the second is used.
func (f *fdt) plic(m Machine) {
	f.node(fmt.Sprintf("plic@%x", m.PLIC.Base), func() {
		f.text("compatible", "sifive,plic-1.0.0", "riscv,plic0")
		f.wide("reg", m.PLIC.Base, m.PLIC.Size)
		f.cells("interrupts-extended", handleCPUInterrupts, externalM, handleCPUInterrupts, externalS)
		f.prop("interrupt-controller", nil)
		f.cells("#interrupt-cells", 1)
		f.cells("#address-cells", 0)
		f.cells("riscv,ndev", m.Sources)
		f.cells("phandle", handlePLIC)
	})
}

func (f *fdt) device(d Device) {
	f.wide("reg", d.Base, d.Size)
	f.cells("interrupt-parent", handlePLIC)
	f.cells("interrupts", d.Interrupt)
}
