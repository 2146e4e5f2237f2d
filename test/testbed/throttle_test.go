package testbed

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestThrottleSettings(t *testing.T) {
	for _, tc := range []struct {
		v2   bool
		rate int64
		want map[string]string
	}{
		{false, 1000, map[string]string{"blkio.throttle.read_bps_device": "8:0 1000", "blkio.throttle.write_bps_device": "8:0 1000"}},
		{false, 0, map[string]string{"blkio.throttle.read_bps_device": "8:0 0", "blkio.throttle.write_bps_device": "8:0 0"}},
		{true, 1000, map[string]string{"io.max": "8:0 rbps=1000 wbps=1000"}},
		{true, 0, map[string]string{"io.max": "8:0 rbps=max wbps=max"}},
	} {
		if diff := cmp.Diff(tc.want, throttleSettings(tc.v2, "8:0", tc.rate)); diff != "" {
			t.Errorf("v2 %v, rate %d (-want +got):\n%s", tc.v2, tc.rate, diff)
		}
	}
}

// TestThrottleSweep removes what a dead process left, and not what a living one has.
func TestThrottleSweep(t *testing.T) {
	base := t.TempDir()
	// No process has the number 0: /proc/0 is not there.
	dead, alive := filepath.Join(base, throttlePrefix+"0-1"), filepath.Join(base, throttlePrefix+"1-1")
	for _, dir := range []string{dead, alive} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweepThrottles(base)
	if _, err := os.Stat(dead); err == nil {
		t.Error("what a dead process left is still there")
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error(err)
	}
}

// TestThrottle has a process write past the page cache for a while, and sees that
// it is held to the bound, and that the group goes with it.
func TestThrottle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: control groups need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "steadfast-test-throttle-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	throttle, err := NewThrottle(dir)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	const rate, size = 8 << 20, 4 << 20
	if err := throttle.Set(rate); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	began := time.Now()
	argv := throttle.Command("dd", "if=/dev/zero", "of="+file, "bs=64k", "count=64", "oflag=direct", "status=none")
	out, err := run(t.Context(), argv...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The first slice of time is free.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("%d bytes were written in %v; the bound is %d a second", size, took, rate)
	}
	if err := throttle.Close(); err != nil {
		t.Error(err)
	}
	if err := unix.Access(throttle.dir, unix.F_OK); err == nil {
		t.Error("the group is still there")
	}
}
