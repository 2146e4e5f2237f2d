package inventory

import "slices"

// Bounds. Together they are 2465 of the quorum's 4096 entries. A machine is about
// 1 KiB, and 9 KiB with every disk, card and letter there can be: a thousand of
// those would be more than the quorum takes, which then says so (fault.Limit).
const (
	DatacentersMax = 16
	ClustersMax    = 64
	HostsMax       = 128
	DatastoresMax  = 128
	MachinesMax    = 1000

	DisksMax             = 16   // of a machine
	NetsMax              = 8    // of a machine
	CommandLineMax       = 2048 // bytes
	MemoryMin            = 64 << 20
	MemoryMax            = 256 << 30
	memoryUnit           = 4096
	sectorSize           = 512
	PrivateMax           = 64  // networks of a host's process
	linkMax              = 128 // bytes
	textMax              = 128 // bytes: a version, a reason
	HostNumberMax        = 1<<16 - 2
	BootMax              = 1<<20 - 1
	GenerationMax        = 1<<20 - 1
	sizeMax        int64 = 1 << 50
)

// EditorNumber and EditorBoot are whom the cluster itself writes into machines'
// volumes as, under their lock: no host has that number. Each time has a
// generation of its own, see View.ReserveGeneration.
const (
	EditorNumber = HostNumberMax + 1
	EditorBoot   = 1
)

// version is the version that documents are written in.
const version = 1

// Doc is what each document has.
type Doc struct {
	// Version is that of its form; see the package doc.
	Version uint32 `json:"version"`
	// Revision counts the document's changes, from 1.
	Revision uint64 `json:"revision"`
}

func (d *Doc) doc() *Doc { return d }

// Datacenter is a place that has clusters and datastores.
type Datacenter struct {
	Doc
	Name string `json:"name"`
}

// Cluster is hosts that take over from one another.
type Cluster struct {
	Doc
	Name       string `json:"name"`
	Datacenter string `json:"datacenter"`
	// HA has the machines of a lost host restarted on another.
	HA bool `json:"ha,omitempty"`
}

// Host is what runs machines.
type Host struct {
	Doc
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	// Number is given once and never again: keys of reservations are made of it.
	Number uint16 `json:"number"`
	Links  Links  `json:"links,omitzero"`
	// Maintenance: nothing is placed on the host, and what runs there leaves.
	Maintenance bool `json:"maintenance,omitempty"`
}

// Links are addresses of a host, in the form that it listens with; empty: as the
// management link, and that: as the host comes.
type Links struct {
	Management string `json:"management,omitempty"`
	Migration  string `json:"migration,omitempty"`
	Logging    string `json:"logging,omitempty"` // of fault tolerance
}

// Datastore is a resource group's volumes, as a place for machines.
type Datastore struct {
	Doc
	Name       string `json:"name"`
	Datacenter string `json:"datacenter"`
	Group      string `json:"group"`
}

// Desired is what a machine shall do. One that is not known is as Stopped.
type Desired string

// What a machine may be wanted to do. Off is only wanted while a host sees to the
// machine's end. A host whose program does not know it presses the power button, as for
// Stopped: so the document's form is the same for both.
const (
	Running Desired = "running"
	Stopped Desired = "stopped"
	Off     Desired = "off" // stopped at once: its guest is not asked
)

// Policy is what happens to a machine whose host is lost.
type Policy string

// Policies. Restart counts in a cluster with HA only.
const (
	Restart Policy = "restart"
	Leave   Policy = "leave"
)

// Machine is a virtual machine.
type Machine struct {
	Doc
	Name string `json:"name"`
	// ID is 16 bytes in hex, given once: the home volume has it, too.
	ID        string `json:"id"`
	Cluster   string `json:"cluster"`
	Datastore string `json:"datastore"`
	// Home is the volume with the machine's definition and lock block.
	Home string `json:"home"`
	Hardware
	Policy Policy `json:"policy"`
	// Host is where it is placed if that can be; empty: anywhere.
	Host    string  `json:"host,omitempty"`
	Desired Desired `json:"desired"`
	// Run counts the starts that were asked for, Resets the resets.
	Run    uint64 `json:"run,omitempty"`
	Resets uint64 `json:"resets,omitempty"`
	// Floor is a generation that its lock block has had, or may have had, for
	// another reason than a placement: before this document was, or to write into
	// the machine's volumes. Placements begin above it.
	Floor uint64 `json:"floor,omitempty"`
	// FT is how it is protected: on two hosts at once, or not.
	FT FT `json:"ft,omitempty"`
}

// FT says whether a machine has a secondary. One that is not known is as FTDisabled.
type FT string

// How a machine is protected.
const (
	FTOff      FT = ""
	FTOn       FT = "on"
	FTDisabled FT = "disabled" // it is turned on, and has no secondary for now
)

// Hardware is what a machine is made up as: its home volume has it, too.
type Hardware struct {
	Memory uint64 `json:"memory"` // bytes, a multiple of 4096
	// CommandLine is the kernel's.
	CommandLine string `json:"command_line,omitempty"`
	Disks       []Disk `json:"disks,omitempty"`
	Nets        []Net  `json:"nets,omitempty"`
}

// Disk is a disk of a machine.
type Disk struct {
	Name   string `json:"name"`
	Volume string `json:"volume"` // of the datastore's group
	Bytes  int64  `json:"bytes"`
}

// Net is a network card of a machine.
type Net struct {
	MAC     string `json:"mac"` // six bytes as 02:00:5e:00:53:01
	Network string `json:"network"`
}

// clone returns a copy that shares nothing with m.
func (m *Machine) clone() *Machine {
	c := *m
	c.Disks, c.Nets = slices.Clone(m.Disks), slices.Clone(m.Nets)
	return &c
}

// Volumes are the volumes of the machine: its home, then its disks'.
func (m *Machine) Volumes() []string {
	list := []string{m.Home}
	for _, d := range m.Disks {
		list = append(list, d.Volume)
	}
	return list
}

// State is what is decided of a host's life.
type State string

// States.
const (
	Up   State = "up"
	Lost State = "lost"
	Left State = "left" // its process has ended in order, and said so
)

// HostLife is the newest life of a host.
type HostLife struct {
	Doc
	Host string `json:"host"`
	// Boot numbers the host's lives, from 1; ID is what this one calls itself,
	// so that asking again is known from a new life.
	Boot  uint32 `json:"boot"`
	ID    string `json:"id"`
	State State  `json:"state"`
	Since int64  `json:"since"` // nanoseconds since 1970, UTC
	// What the host is for as long as it lives: its program, and what it has for
	// machines.
	Program string `json:"program,omitempty"`
	Build   string `json:"build,omitempty"`
	Memory  uint64 `json:"memory"` // bytes
	CPUs    int    `json:"cpus,omitempty"`
	// Box is what the host shares with whatever dies with it: the physical machine. Empty: not
	// known, so that no other host is known to be elsewhere.
	Box string `json:"box,omitempty"`
	// Private are networks that live in the host's process, and end with it.
	Private []string `json:"private,omitempty"`
}

// Placement says where a machine runs.
type Placement struct {
	Doc
	Machine string `json:"machine"`
	ID      string `json:"id"` // the machine's
	Host    string `json:"host"`
	Boot    uint32 `json:"boot"` // the host's life
	// Generation is what the lock block is taken with; it only goes up.
	Generation uint64 `json:"generation"`
	// Run is the machine's that it carries out.
	Run    uint64 `json:"run"`
	Reason string `json:"reason"`
	Since  int64  `json:"since"` // nanoseconds since 1970, UTC
	// Restarts counts those after failures that were made and not given back.
	Restarts int `json:"restarts,omitempty"`
	// Leave asks the host to shut the machine down, which is then placed anew.
	Leave bool `json:"leave,omitempty"`
	// Ended is why it does not run any more; empty while it shall.
	Ended   Ending `json:"ended,omitempty"`
	EndedAt int64  `json:"ended_at,omitempty"` // nanoseconds since 1970, UTC
	// Detail is for people.
	Detail string `json:"detail,omitempty"`
	// Second is where the machine's secondary is, or is to be; nil: nowhere. It says what was
	// decided and heard; who may go on is the lock block's to say.
	Second *Second `json:"second,omitempty"`
	// Pairs counts the secondaries of this placement, Failovers how often one has taken over.
	Pairs     uint64 `json:"pairs,omitempty"`
	Failovers int    `json:"failovers,omitempty"`
	// Parted is how it came to have no secondary; nil: it never had one.
	Parted *Parted `json:"parted,omitempty"`
}

// Second is a machine's secondary.
type Second struct {
	Host string `json:"host"`
	Boot uint32 `json:"boot"` // the host's life
	// Pair numbers it among the placement's, from 1.
	Pair uint64 `json:"pair"`
	// Protected tells that it can go on.
	Protected bool  `json:"protected,omitempty"`
	Since     int64 `json:"since"` // nanoseconds since 1970, UTC
}

// Parted is the end of a pair.
type Parted struct {
	Host   string     `json:"host"` // of the secondary, or of the primary that was lost
	Boot   uint32     `json:"boot"`
	Why    PartReason `json:"why"`
	Detail string     `json:"detail,omitempty"`
	Since  int64      `json:"since"` // nanoseconds since 1970, UTC
	// Tries counts the pairs, this one included, that ended in a row before they were ready, and
	// not by a person.
	Tries int `json:"tries,omitempty"`
}

// PartReason is why a machine needs another secondary.
type PartReason string

// Reasons, in the paper's words; PartInitializing is of one that has had none yet, and is not
// written.
const (
	PartInitializing   PartReason = "initializing"
	PartDivergence     PartReason = "divergence"
	PartLostConnection PartReason = "lost connection"
	PartHardware       PartReason = "partial hardware failure"
	PartUser           PartReason = "user action"
)

// Active tells whether the placement's host shall run the machine, or end it
// and say so.
func (p *Placement) Active() bool { return p != nil && p.Ended == "" }

// Ending is why a placement ended.
type Ending string

// Endings.
const (
	EndedShutdown Ending = "shutdown"  // by its guest
	EndedPanic    Ending = "panic"     // of its guest
	EndedStopped  Ending = "stopped"   // by a person
	EndedMoved    Ending = "moved"     // to be placed on another host
	EndedHostLost Ending = "host lost" // and not to be restarted
	EndedFailed   Ending = "failed"    // the host could not run it, and it is not to be restarted
)

// Text is what people are told of a machine that does not run.
func (e Ending) Text() string {
	switch e {
	case EndedShutdown:
		return "stopped by its guest"
	case EndedPanic:
		return "its guest panicked"
	case EndedStopped:
		return "stopped"
	case EndedMoved:
		return "waits to be started on another host"
	case EndedHostLost:
		return "its host was lost"
	case EndedFailed:
		return "could not be run"
	}
	return string(e)
}

func (e Ending) valid() bool {
	switch e {
	case EndedShutdown, EndedPanic, EndedStopped, EndedMoved, EndedHostLost, EndedFailed:
		return true
	}
	return false
}
