package node

import (
	"os"
	"strconv"

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
