package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process is one of this machine, with its parent.
type process struct {
	pid, parent int
	state       byte
	command     string
}

// processes reads all of them; those that end meanwhile are left out.
func processes() map[int]process {
	found := map[int]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// proc(5): pid (comm) state ppid ..., and comm may hold anything.
		text := string(b)
		end := strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		if end < 0 || len(fields) < 2 {
			continue
		}
		p := process{state: fields[0][0]}
		p.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(name)))
		p.parent, _ = strconv.Atoi(fields[1])
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		p.command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		found[p.pid] = p
	}
	return found
}

// descendants are the processes that a process has started, and they, and so on.
func descendants(of int) (list []process) {
	all := processes()
	for _, p := range all {
		for at := p.parent; at > 1; at = all[at].parent {
			if at == of {
				list = append(list, p)
				break
			}
		}
	}
	return list
}

// machinesOf are the processes that run machines for a host's process.
func machinesOf(host int) (list []process) {
	if host == 0 {
		return nil
	}
	for _, p := range descendants(host) {
		if strings.Contains(p.command, "vmm") && p.state != 'Z' {
			list = append(list, p)
		}
	}
	return list
}

// signalTree signals a process and all that it has started, wherever those are: the machines'
// processes are in sessions of their own.
func signalTree(pid int, sig syscall.Signal) error {
	var err error
	for _, p := range append([]process{{pid: pid}}, descendants(pid)...) {
		if e := unix.Kill(p.pid, sig); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// lives tells whether a process is there and not only waiting to be reaped.
func lives(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	text := string(b)
	end := strings.LastIndexByte(text, ')')
	return end >= 0 && !strings.HasPrefix(strings.TrimSpace(text[end+1:]), "Z")
}
