package image

import (
	"context"
	"io"
)

// builderVersion is part of every key of the cache: it goes up with each change to what
// a build makes.
const builderVersion = 2

// Debian's release and architecture that are built.
const (
	release      = "trixie"
	releaseName  = "Debian 13 (trixie)"
	architecture = "riscv64"
)

// SizeMin is the smallest disk that is made, in bytes.
const SizeMin = 256 << 20

// SizeMax is the largest, in bytes: what ext4 with blocks of 4 KiB and 32-bit numbers holds.
const SizeMax = 16 << 40

// sizeUnit is what disks' sizes are multiples of, in bytes.
const sizeUnit = 4096

// Runner boots a machine and returns when it has powered itself off. It errs when the
// machine could not be started, crashed, or was ended by ctx.
type Runner interface {
	Run(ctx context.Context, m Boot) error
}

// Boot is what a machine is booted from. It needs no network.
type Boot struct {
	// Kernel, Initrd and Disk are paths; Disk is raw and written to.
	Kernel, Initrd, Disk string
	// Cmdline is the kernel's command line.
	Cmdline string
	// Console takes what the machine prints on its first serial port.
	Console io.Writer
}

// RunnerFunc makes a function a Runner.
type RunnerFunc func(ctx context.Context, m Boot) error

// Run implements Runner.
func (f RunnerFunc) Run(ctx context.Context, m Boot) error { return f(ctx, m) }

// Names of an image's files in its folder.
const (
	kernelFile   = "kernel"
	initrdFile   = "initrd"
	rootFile     = "root.ext4"
	diskFile     = "disk.raw"
	manifestFile = "manifest.json"
)
