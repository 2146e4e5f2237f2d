package support

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"steadfast/node/size"
)

// listedMax is how many files of a folder are listed.
const listedMax = 2000

// settings are the kernel's that matter to us. Others are not looked at.
var settings = []string{
	"kernel/osrelease", "kernel/core_pattern", "kernel/panic", "vm/overcommit_memory", "vm/swappiness", "vm/max_map_count", "fs/file-max",
	"net/core/rmem_max", "net/core/wmem_max", "net/core/somaxconn",
	"net/ipv4/ip_forward", "net/ipv4/tcp_congestion_control", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/ipv4/ip_local_port_range",
	"net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce", "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/promote_secondaries",
	"net/ipv6/conf/all/disable_ipv6",
}

// System tells of the computer: kernel, memory, clock, block devices, network. What cannot be read
// says so in its place.
func System(dataDir string) []File {
	return []File{
		{"system/kernel.txt", kernel()},
		{"system/memory.txt", files("/proc/meminfo", "/proc/pressure/memory", "/proc/pressure/io", "/proc/pressure/cpu", "/proc/loadavg")},
		{"system/process.txt", files("/proc/self/limits", "/proc/self/status", "/proc/self/cgroup")},
		{"system/clock.txt", clock()},
		{"system/block.txt", blocks()},
		{"system/space.txt", space(dataDir)},
		{"system/links.txt", links()},
		{"system/addresses.txt", addresses()},
		{"system/routes.txt", routes()},
		{"system/neighbors.txt", neighbors()},
		{"system/netstat.txt", files("/proc/net/sockstat", "/proc/net/sockstat6", "/proc/net/snmp", "/proc/net/netstat")},
	}
}

func kernel() []byte {
	var b bytes.Buffer
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		fmt.Fprintln(&b, err)
	}
	fmt.Fprintf(&b, "%s %s %s %s\n%d processors\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:]), runtime.NumCPU())
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(info)) {
		for _, key := range []string{"model name", "uarch", "isa", "microcode"} {
			if strings.HasPrefix(line, key) && !seen[line] {
				seen[line] = true
				b.WriteString(line)
			}
		}
	}
	for _, name := range settings {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err == nil {
			fmt.Fprintf(&b, "%s = %s\n", strings.ReplaceAll(name, "/", "."), bytes.TrimSpace(value))
		}
	}
	return b.Bytes()
}

// files are the kernel's own texts.
func files(paths ...string) []byte {
	var b bytes.Buffer
	for _, p := range paths {
		text, err := os.ReadFile(p)
		fmt.Fprintf(&b, "== %s\n%s", p, text)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.Bytes()
}

func clock() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "now %s\n", time.Now().Format(time.RFC3339Nano))
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		fmt.Fprintln(&b, err)
	case state == unix.TIME_ERROR:
		fmt.Fprintf(&b, "not synchronised: see to its time synchronisation\n")
	default:
		fmt.Fprintf(&b, "synchronised, off by at most %d µs\n", t.Maxerror)
	}
	b.Write(files("/sys/devices/system/clocksource/clocksource0/current_clocksource", "/proc/uptime"))
	return b.Bytes()
}

// blocks lists block devices with what decides their speed and their safety.
func blocks() []byte {
	var b bytes.Buffer
	all, _ := filepath.Glob("/sys/block/*") // the pattern is right
	for _, dev := range all {
		name := filepath.Base(dev)
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") {
			continue
		}
		fmt.Fprintf(&b, "%s", name)
		for _, fact := range []string{"size", "device/model", "queue/rotational", "queue/logical_block_size", "queue/physical_block_size", "queue/write_cache", "queue/scheduler", "device/state"} {
			if v, err := os.ReadFile(filepath.Join(dev, fact)); err == nil {
				fmt.Fprintf(&b, "  %s %s", fact, bytes.TrimSpace(v))
			}
		}
		b.WriteString("\n")
	}
	return b.Bytes()
}

func space(dir string) []byte {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Appendf(nil, "%s: %v\n", dir, err)
	}
	return fmt.Appendf(nil, "%s: %s of %s free, filesystem type %#x\n", dir, size.Format(int64(st.Bavail)*st.Bsize), size.Format(int64(st.Blocks)*st.Bsize), st.Type)
}

func links() []byte {
	var b bytes.Buffer
	all, err := netlink.LinkList()
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, l := range all {
		a := l.Attrs()
		fmt.Fprintf(&b, "%d %s %s mtu %d %s %s %s master %d\n", a.Index, a.Name, l.Type(), a.MTU, a.OperState, a.Flags, a.HardwareAddr, a.MasterIndex)
		if s := a.Statistics; s != nil {
			fmt.Fprintf(&b, "  received %d packets, %d bytes, %d errors, %d dropped; sent %d packets, %d bytes, %d errors, %d dropped\n",
				s.RxPackets, s.RxBytes, s.RxErrors, s.RxDropped, s.TxPackets, s.TxBytes, s.TxErrors, s.TxDropped)
		}
	}
	return b.Bytes()
}

func addresses() []byte {
	var b bytes.Buffer
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, a := range all {
		fmt.Fprintf(&b, "%d %s scope %d flags %#x\n", a.LinkIndex, a.IPNet, a.Scope, a.Flags)
	}
	return b.Bytes()
}

func routes() []byte {
	var b bytes.Buffer
	all, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, r := range all {
		fmt.Fprintln(&b, r)
	}
	return b.Bytes()
}

func neighbors() []byte {
	var b bytes.Buffer
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.NeighList(0, family)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
		for _, n := range all {
			fmt.Fprintf(&b, "%d %s %s state %#x\n", n.LinkIndex, n.IP, n.HardwareAddr, n.State)
		}
	}
	return b.Bytes()
}

// Listing lists a member's data directory: names, sizes, times. What the files hold is not in it,
// and of the secrets not even the names.
func Listing(dataDir string) File {
	var b bytes.Buffer
	count := 0
	err := filepath.WalkDir(dataDir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dataDir, path) // it is under it
		switch {
		case err != nil:
			fmt.Fprintf(&b, "%s: %v\n", name, err)
			return nil
		case d.IsDir() && name == "secrets":
			return fs.SkipDir
		}
		if count++; count > listedMax {
			fmt.Fprintf(&b, "and more: only %d are listed\n", listedMax)
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has just gone
		}
		fmt.Fprintf(&b, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), name)
		return nil
	})
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	return File{"files.txt", b.Bytes()}
}
