package node

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// niceness is the priority that a node asks for. Its promises are to be renewed
// every few tens of milliseconds, and a machine that is busy with something else is
// no reason for a takeover.
const niceness = -10

// RaisePriority asks the system to prefer this process's threads, and those that
// they will make. A user who may not is refused, and that is no error: the node
// works, with less margin.
func RaisePriority() {
	setNiceness(niceness)
	preferSession()
}

// autogroupFile has the niceness of this process's session, where the kernel weighs sessions against
// each other (sched(7), the autogroup feature).
const autogroupFile = "/proc/self/autogroup"

// preferSession asks for a niceness of this process's session, if that is its own, as a service
// manager makes it. Where sessions are weighed, as most distributions have it, a thread's niceness
// counts only within its session: each machine on this box, and each shell, would have as much of
// the processors as the node.
func preferSession() {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile(autogroupFile, []byte(strconv.Itoa(niceness)), 0) // it may be refused, as above
	}
}

// DropPriority gives up what this process has from its parent for being preferred: a
// virtual machine comes after the node that it is on, in processor time and when memory
// is short.
func DropPriority() {
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && 20-now < 0 { // the system call says 20 less it
		setNiceness(0)
	}
	const score = "/proc/self/oom_score_adj"
	if b, err := os.ReadFile(score); err == nil && strings.HasPrefix(string(b), "-") {
		_ = os.WriteFile(score, []byte("0"), 0) // to give up is always granted
	}
}

// setNiceness asks for a niceness of all threads of this process.
func setNiceness(niceness int) {
	// Twice: a thread may be made between by one that was not asked yet.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, niceness)
			}
		}
	}
}
