package machine

import (
	"encoding/json"

	"steadfast/block"
	"steadfast/compute/riscv/boot"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// Config is what a machine is made up as. Two machines of one Config, one kernel and one
// log are the same. It is kept as JSON with logs and saved states.
type Config struct {
	// Memory is in bytes, a multiple of 4096 from MemoryMin to MemoryMax.
	Memory uint64 `json:"memory"`
	Disks  []Disk `json:"disks,omitempty"`
	Nets   []Net  `json:"nets,omitempty"`
	// CommandLine is the kernel's.
	CommandLine string `json:"command_line,omitempty"`
	// Seed is what the kernel's random numbers begin with, at least 32 bytes: of the
	// world, and fresh for each machine and each clone.
	Seed []byte `json:"seed,omitempty"`
	// Wall is the wall clock when the machine begins, in nanoseconds since 1970, UTC.
	Wall uint64 `json:"wall"`
}

// Disk is a disk of a machine.
type Disk struct {
	Size     int64  `json:"size"` // bytes, a multiple of 512
	ReadOnly bool   `json:"read_only,omitempty"`
	Serial   string `json:"serial,omitempty"`
}

// Net is a network card of a machine.
type Net struct {
	MAC [6]byte `json:"mac"`
	MTU uint16  `json:"mtu,omitempty"` // 0 for 1500
}

// MemoryMin is the least that a Debian kernel starts in, in bytes; MemoryMax bounds what
// a machine may have.
const (
	MemoryMin = 64 << 20
	MemoryMax = 256 << 30
)

// Bounds of a Config.
const (
	DisksMax       = 16
	NetsMax        = 8
	commandLineMax = 2048
)

// check errs with fault.Invalid.
func (c *Config) check() error {
	switch {
	case c.Memory < MemoryMin || c.Memory > MemoryMax || c.Memory%4096 != 0:
		return fault.New(fault.Invalid, "a machine with %d bytes of memory: it must be a multiple of 4096, at least %d and at most %d", c.Memory, MemoryMin, uint64(MemoryMax))
	case len(c.Disks) > DisksMax || len(c.Nets) > NetsMax:
		return fault.New(fault.Invalid, "a machine with %d disks and %d network cards: at most %d and %d", len(c.Disks), len(c.Nets), DisksMax, NetsMax)
	case len(c.CommandLine) > commandLineMax:
		return fault.New(fault.Invalid, "a kernel command line of %d bytes: at most %d", len(c.CommandLine), commandLineMax)
	case len(c.Seed) != 0 && (len(c.Seed) < boot.SeedMin || len(c.Seed) > boot.SeedMax):
		return fault.New(fault.Invalid, "a seed of %d bytes: at least %d", len(c.Seed), boot.SeedMin)
	}
	for i, d := range c.Disks {
		if d.Size <= 0 || d.Size%block.SectorSize != 0 {
			return fault.New(fault.Invalid, "disk %d has %d bytes: it must be a multiple of %d", i, d.Size, block.SectorSize)
		}
	}
	for i, n := range c.Nets {
		if n.MAC[0]&1 != 0 {
			return fault.New(fault.Invalid, "network card %d has the address of a group", i)
		}
		if n.MTU > virtio.NetMTUMax {
			return fault.New(fault.Invalid, "network card %d has an MTU of %d", i, n.MTU)
		}
	}
	return nil
}

// Encode returns the Config's bytes.
func (c *Config) Encode() ([]byte, error) {
	b, err := json.Marshal(c)
	return b, fault.Wrap(fault.Internal, err, "a machine's configuration")
}

// DecodeConfig reads them. It errs with fault.Corrupt or fault.Invalid.
func DecodeConfig(b []byte) (c Config, err error) {
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fault.Wrap(fault.Corrupt, err, "a machine's configuration")
	}
	return c, c.check()
}
