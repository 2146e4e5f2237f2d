package image

import (
	"context"
	"errors"
	"testing"

	"steadfast/fault"
)

// TestFetching: a mirror that is away is told from one that is not to be trusted, and from a full disk.
func TestFetching(t *testing.T) {
	for said, want := range map[string]fault.Kind{
		"E: Failed to fetch http://x/InRelease  Could not connect to x:80 (127.0.0.1). - connect (111: Connection refused)":                  fault.Unreachable,
		"E: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'":                                                             fault.Unreachable,
		"W: Download is performed unsandboxed as root as '/x' couldn't be accessed by '_apt'. (13: Permission denied)\nE: Failed to fetch":   fault.Unreachable,
		"E: The repository 'http://x trixie Release' does not have a Release file.":                                                          fault.Unreachable,
		"E: The repository 'http://x trixie InRelease' is not signed.":                                                                       fault.Failed,
		"W: GPG error: http://x trixie InRelease: The following signatures couldn't be verified: NO_PUBKEY 6ED0E7B82643E131":                 fault.Failed,
		"E: Release file for http://x/InRelease is expired (invalid since 3d). Updates for this repository will not be applied.":             fault.Failed,
		"E: Failed to fetch http://x/pool/main/h/hello/hello_2.10_riscv64.deb  Hash Sum mismatch":                                            fault.Failed,
		"E: Failed to fetch http://x/pool/main/h/hello/hello_2.10_riscv64.deb  Error writing to file - write (28: No space left on device)":  fault.Failed,
		"E: You don't have enough free space in /var/cache/x/.":                                                                              fault.Failed,
		"E: Release file for http://x/InRelease is not valid yet (invalid for another 2h). Updates for this repository will not be applied.": fault.Failed,
	} {
		if err := fetching(fault.New(fault.Failed, "apt-get: %w: %s", errors.New("exit status 100"), said)); !fault.Is(err, want) {
			t.Errorf("%s: %v; want %v", said, fault.KindOf(err), want)
		}
	}
	if err := fetching(nil); err != nil {
		t.Error(err)
	}
	if err := fetching(fault.Wrap(fault.Canceled, context.Canceled, "apt-get")); !fault.Is(err, fault.Canceled) {
		t.Error(err)
	}
}

// TestNoMirror: with no mirror that answers, there is no image, and it is said why.
func TestNoMirror(t *testing.T) {
	if err := needTools("apt-get", "apt-config", "dpkg-deb", "mke2fs", "debugfs", "e2fsck", "depmod", "xz"); err != nil {
		t.Skip(err)
	}
	b := &Builder{Cache: t.TempDir(), Say: t.Logf, Runner: RunnerFunc(func(context.Context, Boot) error {
		t.Error("there is nothing to boot")
		return nil
	})}
	// A folder that holds no archive: nothing has to be waited for.
	_, err := b.Build(t.Context(), Spec{Name: "x", Mirror: "file://" + t.TempDir()}, t.TempDir()+"/x")
	if !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.NotFound) { // the latter: this host lacks Debian's keys
		t.Error(err)
	}
}
