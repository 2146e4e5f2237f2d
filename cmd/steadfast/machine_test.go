package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"steadfast/compute/machine/machinetest"
	"steadfast/fault"
)

// TestMachineScripts runs the transcripts in testdata/machine as TestScripts does; $D/kernel
// is machinetest.Obey.
func TestMachineScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "machine"), RequireUniqueNames: true, RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exitsScript, "await": awaitScript},
		Setup: func(e *testscript.Env) error {
			// Sockets' paths are short; the script's own folder may not be.
			dir, err := os.MkdirTemp("", "sf")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			e.Setenv("D", dir)
			e.Setenv("XDG_RUNTIME_DIR", dir)
			return os.WriteFile(filepath.Join(dir, "kernel"), machinetest.Obey(), 0o600)
		},
	})
}

// TestParseCount: counts are decimal.
func TestParseCount(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "17": 17, "2k": 2000, "100M": 100_000_000, "3G": 3_000_000_000, "1T": 1_000_000_000_000, "18446744073709551615": 1<<64 - 1} {
		if n, err := parseCount(text); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "M", "-1", "1.5G", "1KK", "18446744073709551616", "18446744073709552K"} {
		if n, err := parseCount(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
}

// TestParseNet: what --net takes.
func TestParseNet(t *testing.T) {
	n, err := parseNet("user,forward=127.0.0.1:8080:80,forward=[::1]:22:2222,isolated,mac=02:00:00:00:00:07")
	if err != nil || len(n.User.Forwards) != 2 || n.User.Forwards[1].Listen != "[::1]:22" || n.User.Forwards[1].GuestPort != 2222 || !n.User.Isolated || n.MAC != [6]byte{2, 0, 0, 0, 0, 7} {
		t.Errorf("%+v, %v", n, err)
	}
	for _, text := range []string{"", "tap", "user,x", "user,forward=", "user,forward=1:2", "user,forward=127.0.0.1:80:0", "user,forward=127.0.0.1:80:x", "user,mac=02:00", "user,mac=02:00:00:00:00:00:00:01"} {
		if n, err := parseNet(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %+v, %v", text, n, err)
		}
	}
}
