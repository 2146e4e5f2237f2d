package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Of the rows of guests at rest.
const (
	settleTime = 20 * time.Second
	idleTime   = 60 * time.Second
	// idleGoal is CPU time in percent of one processor.
	idleGoal = 2
	// touchedMiB is what the guest has touched, and memoryGoal what its process is
	// to have resident then at most, in MiB.
	touchedMiB = 100
	memoryGoal = 160
)

// pause waits, unless the run is ended.
func pause(ctx context.Context, long time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(long):
		return nil
	}
}

// cpu is the CPU time of all of a guest's processes so far.
func (g *guest) cpu() (sum time.Duration, err error) {
	for _, pid := range g.processes() {
		t, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// idle measures both guests at once: neither does anything.
func (m *machineBench) idle() error {
	if err := m.running(); err != nil {
		return err
	}
	if err := pause(m.ctx, settleTime); err != nil {
		return err
	}
	var before, after [2]time.Duration
	var err error
	began := time.Now()
	for side, g := range m.guests {
		if before[side], err = g.cpu(); err != nil {
			return err
		}
	}
	if err := pause(m.ctx, idleTime); err != nil {
		return err
	}
	took := time.Since(began)
	var percent [2]float64
	for side, g := range m.guests {
		if after[side], err = g.cpu(); err != nil {
			return err
		}
		percent[side] = 100 * float64(after[side]-before[side]) / float64(took)
	}
	m.judgeFine("machine-idle-cpu/percent", percent[ours], percent[theirs], fmt.Sprintf("<=%d", idleGoal), percent[ours] <= idleGoal)
	return nil
}

// judgeFine is judge for figures that are small.
func (m *machineBench) judgeFine(name string, ours, peer float64, goal string, ok bool) {
	m.count(ok)
	fmt.Printf("bench %s ours=%.2f peer=%.2f(%s) ratio=%.2f goal=%s %s\n", name, ours, peer, qemuName, ours/max(peer, 1e-9), goal, word(ok))
}

// memory has both guests touch as much as was promised for, and looks at what is resident.
func (m *machineBench) memory() error {
	if err := m.running(); err != nil {
		return err
	}
	var resident, touched [2]float64
	for side, g := range m.guests {
		was, err := guestRAM(g.worker)
		if err != nil {
			return err
		}
		if more := touchedMiB - was; more >= 1 {
			command := fmt.Sprintf("guestload memory %d </dev/null", int(more*(1<<20)))
			if _, err := g.order(m.ctx, command); err != nil {
				return err
			}
		}
		if touched[side], err = guestRAM(g.worker); err != nil {
			return err
		}
		if resident[side], err = residentMiB(g.worker); err != nil {
			return err
		}
	}
	fmt.Printf("note  machine-memory: the guests have touched %.0f MiB (%s) and %.0f MiB (%s) of %d\n", touched[ours], sideNames[ours], touched[theirs], sideNames[theirs], guestMemory)
	// A kernel that has touched more by itself may have more resident.
	goal := memoryGoal + max(0, touched[ours]-touchedMiB)
	m.judge("machine-memory/MiB", resident[ours], resident[theirs], qemuName, fmt.Sprintf("<=%.0f", goal), resident[ours] <= goal)
	return nil
}

// residentMiB is a process's resident set.
func residentMiB(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return kilobytes(string(text), "VmRSS:")
}

// guestRAM is how many MiB of a guest's memory are resident: the mapping that is as large as
// that is it.
func guestRAM(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	best, found := 0.0, false
	for _, part := range strings.Split(string(text), "\nVmFlags:") {
		size, err := kilobytes(part, "Size:")
		if err != nil || size < guestMemory || size > guestMemory+64 {
			continue
		}
		rss, err := kilobytes(part, "Rss:")
		if err != nil {
			return 0, err
		}
		best, found = max(best, rss), true
	}
	if !found {
		return 0, fmt.Errorf("process %d has no memory of %d MiB", pid, guestMemory)
	}
	return best, nil
}

// kilobytes reads a field of /proc that is in kB, as MiB.
func kilobytes(text, field string) (float64, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == field {
			n, err := strconv.ParseFloat(f[1], 64)
			return n / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s", field)
}
