package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"steadfast/test/testbed"
)

// The rows of a machine's disk on the SAN: the same guest, kernel and I/O, with its
// virtio-blk disk on a volume of the same node. Ours is a machine whose disk comes by
// compute/diskwire from compute/initiator (sanmachine/), theirs QEMU with an iscsi:// drive.
//
//	vm-blk-*  I/O of the guest past its page cache, one at a time (guestload/); a volume with
//	          write cache, so that a write is the network's and the initiators' affair

// sanLoads are the rows.
var sanLoads = []diskLoad{
	{"vm-blk-randread-4k", "read", "random", 4 << 10},
	{"vm-blk-randwrite-4k", "write", "random", 4 << 10},
	{"vm-blk-read-128k", "read", "sequential", 128 << 10},
	{"vm-blk-write-128k", "write", "sequential", 128 << 10},
}

// sanGoal is how many times QEMU's rate was promised.
const sanGoal = 1

func sanRows() (rows []string) {
	for _, l := range sanLoads {
		rows = append(rows, l.name)
	}
	return rows
}

// sanServer starts a node with a volume for each side.
func (m *machineBench) sanServer(dir string) (testbed.Server, error) {
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	cfg := testbed.Config{
		Dir: dir, Portals: []string{fmt.Sprintf("127.0.0.1:%d", port)},
		Initiators: []testbed.Initiator{{Name: generatorName}}, CacheBytes: 2 * dataBytes,
	}
	for side := range m.guests {
		cfg.Volumes = append(cfg.Volumes, testbed.Volume{Name: fmt.Sprintf("side%d", side), Size: dataBytes, LUN: side + 1, WriteCache: true})
	}
	return testbed.New(m.ctx, "steadfast", cfg)
}

// sanDisks measures the guest's I/O on volumes.
func (m *machineBench) sanDisks() (err error) {
	if modules, err := filepath.Glob("/usr/lib*/*/qemu*/block-iscsi.so"); len(modules) == 0 || err != nil {
		fmt.Println("SKIP vm-blk-*: this QEMU has no iscsi:// (apt-get install qemu-block-extra)")
		return nil
	}
	if err := m.stop(); err != nil { // those of other rows have no volumes
		return err
	}
	dir := filepath.Join(m.dir, "vm-blk")
	fill := filepath.Join(m.dir, "initiatorload")
	m.san = filepath.Join(m.dir, "sanmachine")
	for _, program := range []string{fill, m.san} {
		build := exec.CommandContext(m.ctx, "go", "build", "-trimpath", "-o", program, "./test/bench/"+filepath.Base(program))
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", filepath.Base(program), err, out)
		}
	}
	server, err := m.sanServer(dir)
	if err != nil {
		return err
	}
	defer func() {
		// The guests first: they wait for their disks without end.
		err = errors.Join(err, m.stop(), server.Close(), os.RemoveAll(dir))
		m.san, m.volumes = "", [2]string{}
	}()
	for side := range m.volumes {
		m.volumes[side] = server.URL(0, side+1)
		by := *m.bench
		by.tool = fill
		if _, _, err := by.drive(m.volumes[side], load{name: fillName, write: true, bs: 256 << 10, qd: 8}, (*exec.Cmd).Start); err != nil {
			return err
		}
	}
	if err := m.running(); err != nil {
		return err
	}
	for _, l := range sanLoads {
		if !m.wants(l.name) {
			continue
		}
		values, err := m.both(func(side int) (float64, error) { return m.guests[side].io(m.ctx, l, m.seconds) })
		if err != nil {
			return err
		}
		m.atLeast(l.name+"/"+l.unit(), medianOf(values[ours]), medianOf(values[theirs]), "qemu-iscsi", sanGoal)
	}
	return nil
}

// onSAN is how a side's guest is started whose second disk is a volume.
func (m *machineBench) onSAN(side int, arguments string) []string {
	if side == ours {
		return []string{
			m.san, "-kernel", m.parts.Kernel, "-initrd", m.parts.Initrd, "-append", arguments, "-memory", fmt.Sprint(guestMemory << 20),
			"-disk", m.disk(side), "-volume", m.volumes[side], "-initiator", generatorName,
		}
	}
	return append(qemuMachine(),
		"-kernel", m.parts.Kernel, "-initrd", m.parts.Initrd, "-append", arguments, "-iscsi", "initiator-name="+generatorName,
		"-drive", "file="+m.disk(side)+",format=raw,if=none,id=root", "-device", "virtio-blk-device,drive=root",
		"-drive", "file="+m.volumes[side]+",format=raw,if=none,id=data", "-device", "virtio-blk-device,drive=data")
}
