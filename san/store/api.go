package store

import (
	"time"

	"steadfast/san/drive"
)

// Size bounds of a volume, in bytes.
const (
	VolumeSizeMin = 1 << 20
	VolumeSizeMax = 64 << 40
)

// ID identifies a pool, drive or volume for ever. It is random from its first
// byte on, since initiators have joined devices whose identifiers began alike.
type ID [16]byte

// Instant is a moment on the pool's clock: nanoseconds since the Unix epoch.
type Instant int64

// LSN is a log sequence number: it orders every change of a pool.
type LSN uint64

// Options say how a pool runs on this machine; none of them is stored.
type Options struct {
	// CacheBytes bounds the memory for cached blocks and map nodes together.
	// At least 16 MiB; default 256 MiB.
	CacheBytes int64
	// Now is the clock. Required.
	Now func() Instant
	// NewID makes random identifiers. Required.
	NewID func() ID
	// Notify receives the pool's events; it must not block. May be nil.
	Notify func(Event)
	// Wake is called when Maintain has work to do; it must not block. May be nil.
	Wake func()
}

// NamedDrive is a drive with the path or name that people know it by.
type NamedDrive struct {
	Name  string
	Drive drive.Drive
}

// EventKind classes an Event.
type EventKind uint8

// Events of a pool.
const (
	EventThreshold   EventKind = iota // pool use crossed a thin threshold upwards
	EventFull                         // a write was refused for want of space
	EventSpaceBack                    // writes are admitted again
	EventCorrupt                      // a checksum did not match
	EventDriveFailed                  // a drive was taken out
	EventDriveGone                    // an evacuated drive holds nothing any more
	EventDeleted                      // a deleted volume's or snapshot's space is all back
)

// Event is one thing that happened to a pool and that someone should know.
type Event struct {
	Kind   EventKind
	Volume string // name, or empty
	Drive  string // name, or empty
	Offset int64  // bytes, in the volume if one is named and else in the drive
	Text   string
}

// PoolStatus describes a pool. Sizes are bytes.
type PoolStatus struct {
	ID   ID
	Name string
	// State is "online", "read-only" or "failed".
	State string
	// Capacity is what volumes can fill; the cleaner's reserve is not in it.
	Capacity int64
	// Used is what live data and the map take up of Capacity.
	Used int64
	// Data and Metadata are the parts of Used.
	Data, Metadata int64
	// Provisioned is the sum of the volumes' sizes.
	Provisioned int64
	// Shared is data that more than one volume or snapshot reads.
	Shared int64
	// Reclaimable is space of deleted or overwritten data that is on its way
	// back to being free.
	Reclaimable int64
	// Thresholds are percentages of Capacity, ascending.
	Thresholds []int
	Volumes    int
	Snapshots  int
	Drives     []DriveStatus
	// CorruptBlocks counts checksum mismatches seen since the pool was opened.
	CorruptBlocks uint64
	// WrittenByUsers and WrittenToDrives are bytes since the pool was opened;
	// their quotient is the write amplification.
	WrittenByUsers, WrittenToDrives uint64
	CacheHits, CacheMisses          uint64
	// CommitSequence is the last durable LSN.
	CommitSequence LSN
}

// DriveStatus describes a drive of a pool.
type DriveStatus struct {
	ID    ID
	Name  string
	State string // "online", "evacuating", "failed"
	Size  int64  // bytes
	Used  int64  // bytes of live data and map
	// LastError is why a failed drive was taken out.
	LastError string
}

// VolumeSpec is what a user asks for when creating a volume.
type VolumeSpec struct {
	Name string // 1 to 63 of a-z, 0-9, '-', '.', beginning with a letter or digit
	Size int64  // bytes, VolumeSizeMin to VolumeSizeMax, a multiple of 4096
	// WriteCache: answer writes before they are stable (WCE=1).
	WriteCache bool
	// ReadOnly: refuse writes with DATA PROTECT.
	ReadOnly bool
	// ID is the identifier of a volume that exists on another node too; zero: a
	// new one.
	ID ID
}

// VolumeChange is what a user changes of a volume; nil leaves a field alone.
type VolumeChange struct {
	Name       *string
	Size       *int64 // only to grow
	WriteCache *bool
	ReadOnly   *bool
}

// VolumeStatus describes a volume. Sizes are bytes.
type VolumeStatus struct {
	ID   ID
	Name string
	Size int64
	// Referenced is what the volume's own content takes up, shared or not.
	Referenced int64
	// Exclusive is what was written since the newest snapshot, and so the least
	// that deleting the volume (without its snapshots) would give back. Of a
	// clone or a volume that was rolled back, that is since it forked.
	Exclusive  int64
	WriteCache bool
	ReadOnly   bool
	// Origin is "volume@snapshot" for a clone, or empty.
	Origin        string
	Snapshots     int
	CorruptBlocks uint64
	Created       time.Time
}

// SnapshotSpec is what a snapshot is to be.
type SnapshotSpec struct {
	Name string // as a volume's
	// Created is when it was taken elsewhere; 0: now.
	Created Instant
	// Size is what the volume's was then, in bytes; 0: what it is. It is not more.
	Size int64
}

// NewSnapshot is a snapshot that a volume is to get.
type NewSnapshot struct {
	Volume string
	SnapshotSpec
}

// SnapshotName says which snapshot is meant.
type SnapshotName struct{ Volume, Name string }

// SnapshotStatus describes a snapshot. Sizes are bytes.
type SnapshotStatus struct {
	Volume     string
	Name       string
	LSN        LSN
	Size       int64 // the volume's size when it was taken
	Referenced int64
	Exclusive  int64 // what deleting it would give back; 0 while others stand on it
	Clones     []string
	Created    time.Time
}

// ScrubStatus says how far a scrub is.
type ScrubStatus struct {
	Running  bool
	Done     int64 // bytes verified
	Total    int64 // bytes to verify
	Corrupt  []CorruptBlock
	Started  time.Time
	Finished time.Time
}

// CorruptBlock locates one block whose content does not match its checksum.
type CorruptBlock struct {
	Volume      string // empty for a block of the map itself
	Offset      int64  // bytes in the volume
	Drive       string
	DriveOffset int64 // bytes in the drive
}

// Range is a run of bytes of a volume.
type Range struct {
	Offset, Length int64
}

// CheckReport is what an offline check found.
type CheckReport struct {
	Pool      ID
	Blocks    int64 // data blocks reached from the map
	Nodes     int64 // map nodes
	Volumes   int
	Snapshots int
	LogTail   LSN // last sequence number that would be recovered
	// Problems are in words, each with its place. Empty means sound.
	Problems []string
}
