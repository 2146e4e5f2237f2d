package node

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// LimitMemory tells the garbage collector how much memory the process may
// have, when a control group says so and nobody set GOMEMLIMIT: it collects
// sooner then, instead of growing to twice what lives and being killed.
func LimitMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := MemoryMax(); limit > 0 {
		// A tenth is left for what the collector does not see: stacks of
		// threads, the kernel's buffers, the page cache.
		debug.SetMemoryLimit(limit - limit/10)
	}
}

// MemoryMax returns how much memory the control group of this process may have, in bytes; 0
// for as much as there is.
func MemoryMax() int64 { return groupLimit("/proc/self/cgroup", "/sys/fs/cgroup") }

// ballastBytes is memory that is never touched, and so takes none: the garbage
// collector, which runs when the heap has doubled, takes it for live. Without,
// a node under load, whose caches lie outside the heap, collects its few
// megabytes forty times a second, and each time its slowest answers are slower
// by a fifth. It lets that much garbage stand at most.
const ballastBytes = 48 << 20

// groupLimit returns the least memory limit of the process's control group and
// those above it, in bytes; 0 for none. It knows both versions. cgroups(7).
func groupLimit(membership, root string) int64 {
	text, err := os.ReadFile(membership)
	if err != nil {
		return 0
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(text)) {
		// hierarchy-ID:controller-list:cgroup-path
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		base, file := "", ""
		switch {
		case parts[0] == "0" && parts[1] == "":
			base, file = root, "memory.max"
		case strings.Contains(","+parts[1]+",", ",memory,"):
			base, file = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := filepath.Clean("/" + parts[2]); ; dir = filepath.Dir(dir) {
			b, err := os.ReadFile(filepath.Join(base, dir, file))
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && n > 0 {
				least = min(least, n)
			}
			if dir == "/" {
				break
			}
		}
	}
	// Version 1 says "no limit" as a number of pages near the largest.
	if least >= 1<<60 {
		return 0
	}
	return least
}
