package standalone

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"steadfast/fault"
)

// bootPatience bounds a guest's boot: the host may have much else to do.
const bootPatience = 10 * time.Minute

// TestBoot boots a Linux guest in a machine's process and records that: STEADFAST_GUEST is
// a folder with kernel, initrd.gz and root.ext4, whose guest prints "guest up". The recording
// is replayed then.
func TestBoot(t *testing.T) {
	guest := os.Getenv("STEADFAST_GUEST")
	if guest == "" {
		t.Skip("STEADFAST_GUEST names no folder with a guest: kernel, initrd.gz, root.ext4")
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "root.ext4")
	if out, err := exec.Command("cp", "--sparse=always", filepath.Join(guest, "root.ext4"), disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := newScreen()
	o := Options{
		Kernel: filepath.Join(guest, "kernel"), Initrd: filepath.Join(guest, "initrd.gz"), Disks: []Disk{{File: disk}},
		Nets: []Net{{MAC: [6]byte{2}}}, Memory: 512 << 20, CommandLine: "console=ttyS0",
		Record: filepath.Join(dir, "rec"), HashEvery: 100_000_000,
	}
	o.Outputs = append(o.Outputs, s)
	m, err := Open(o)
	must(t, err)
	defer func() { must(t, m.Close()) }()
	late := time.AfterFunc(bootPatience, func() { m.Stop(0) })
	defer late.Stop()
	go func() {
		s.awaitFor(t, "guest up", bootPatience)
		m.Stop(0)
	}()
	if _, err := m.Run(t.Context()); !fault.Is(err, fault.Canceled) {
		t.Fatal(err)
	}
	r := replayed(t, o.Record)
	t.Logf("%d instructions, %d inputs, %d digests", r.Machine.Count(), r.Contents.Inputs, r.Compared())
	if r.Compared() < 5 || !r.Contents.Whole || r.Compared() != uint64(len(r.Contents.Digests)) {
		t.Errorf("%+v, %d compared", r.Contents, r.Compared())
	}
}
