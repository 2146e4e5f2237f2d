package storetest

import (
	"errors"

	"steadfast/block"
	"steadfast/san/store"
)

// Pool is a pool as histories use it: the methods of *store.Pool, with volumes
// as an interface, so that a stand-in with known faults can try the judge.
type Pool interface {
	Close() error
	Maintain() (more bool, err error)
	Status() store.PoolStatus
	SetThresholds(percent []int) error
	AddDrive(d store.NamedDrive) error
	EvacuateDrive(name string) error
	RemoveDrive(name string) error
	CreateVolume(spec store.VolumeSpec) (store.VolumeStatus, error)
	ChangeVolume(name string, c store.VolumeChange) (store.VolumeStatus, error)
	DeleteVolume(name string, withSnapshots bool) error
	Volumes() []store.VolumeStatus
	Volume(name string) (store.VolumeStatus, error)
	CreateSnapshot(volume, name string) (store.SnapshotStatus, error)
	Snapshots(volume string) ([]store.SnapshotStatus, error)
	DeleteSnapshot(volume, name string) error
	Rollback(volume, snapshot string) error
	Clone(volume, snapshot, name string) (store.VolumeStatus, error)
	Changed(volume, from, to string, emit func(store.Range) bool) error
	Position() store.LSN
	ChangedSince(volume string, since store.LSN, emit func(store.Range) bool) error
	SetBase(volume string, base store.LSN) error
	ClearBase(volume string) error
	Base(volume string) (base store.LSN, ok bool)
	StartScrub() error
	StopScrub()
	Scrub() store.ScrubStatus
	OpenVolume(name string) (Device, error)
	OpenSnapshot(volume, name string) (Device, error)
}

// Device is an open volume as histories use it: the methods of *store.Volume.
type Device interface {
	block.Device
	TryReadAt(p []byte, off int64) bool
	Mapped(off, limit int64) (mapped bool, n int64, err error)
	CopyFrom(dst int64, from Device, src, n int64, flags block.Flags) error
	SetWriteCache(on bool) error
	Attribute(key string) ([]byte, error)
	SetAttribute(key string, value []byte) error
	Close() error
}

// System makes and opens pools.
type System struct {
	Create func(name string, opt store.Options, drives []store.NamedDrive) (Pool, error)
	Open   func(opt store.Options, drives []store.NamedDrive) (Pool, error)
}

// Real returns package store as a System.
func Real() System {
	wrap := func(p *store.Pool, err error) (Pool, error) {
		if err != nil {
			return nil, err
		}
		return realPool{p}, nil
	}
	return System{
		Create: func(name string, opt store.Options, drives []store.NamedDrive) (Pool, error) {
			return wrap(store.Create(name, opt, drives))
		},
		Open: func(opt store.Options, drives []store.NamedDrive) (Pool, error) {
			return wrap(store.Open(opt, drives))
		},
	}
}

type realPool struct{ *store.Pool }

func (p realPool) OpenVolume(name string) (Device, error) {
	v, err := p.Pool.OpenVolume(name)
	return realVolume{v}, err
}

func (p realPool) OpenSnapshot(volume, name string) (Device, error) {
	v, err := p.Pool.OpenSnapshot(volume, name)
	return realVolume{v}, err
}

type realVolume struct{ *store.Volume }

func (v realVolume) CopyFrom(dst int64, from Device, src, n int64, flags block.Flags) error {
	f, ok := from.(realVolume)
	if !ok {
		return errors.New("a volume of another system")
	}
	return v.Volume.CopyFrom(dst, f.Volume, src, n, flags)
}
