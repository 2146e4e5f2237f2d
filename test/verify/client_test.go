package verify

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestQEMUImage(t *testing.T) {
	got, err := qemuImage("iscsi://10.77.0.50:3260/iqn.2026-11.io.steadfast:g1/3", "iqn.2026-11.com.example:me")
	want := "driver=iscsi,transport=tcp,portal=10.77.0.50:3260,target=iqn.2026-11.io.steadfast:g1,lun=3,initiator-name=iqn.2026-11.com.example:me"
	if err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"iscsi://10.77.0.50:3260/target", "nbd://host/x/1", "::"} {
		if got, err := qemuImage(bad, "me"); err == nil {
			t.Errorf("%s: %q", bad, got)
		}
	}
}

// TestNBDOnQEMU: our side of NBD against QEMU's, with a file behind it, under
// load; and when QEMU is killed, every request fails and none hangs.
func TestNBDOnQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("SKIP: no qemu-nbd")
	}
	dir, err := os.MkdirTemp("", "nbd-") // t.TempDir's may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 32<<20); err != nil {
		t.Fatal(err)
	}
	p, err := Client{}.start(nil, "qemu-nbd", "--format=raw", "--shared=1", "--socket="+socket, file)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if p.nbd, err = until(t.Context(), conn, negotiate); err != nil {
		t.Fatal(err)
	}
	if p.Size() != 32<<20 {
		t.Errorf("size %d", p.Size())
	}
	judge := NewJudge(1, p.Size())
	if err := Fill(t.Context(), judge, p); err != nil {
		t.Fatal(err)
	}
	load, err := StartLoad(judge, Lane{Disk: p, Depth: 16})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	resume := load.Pause()
	if err := ReadBack(t.Context(), judge, p); err != nil {
		t.Fatal(err)
	}
	resume()
	// The page cache promises no block whole to readers beside a writer.
	if c := judge.Counts(); c.Sub(Counts{Torn: c.Of(Torn)}) != (Counts{}) {
		t.Error(judge.Findings())
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if err := p.ReadAt(make([]byte, Block), 0); err == nil {
		t.Error("no error after its end")
	}
	load.Stop()
	if judge.Counts().Of(Failed) == 0 {
		t.Error("no error was found")
	}
	if err := p.Close(); err != nil {
		t.Log(err)
	}
}
