package config

import (
	"bytes"
	"path/filepath"
	"regexp"
	"strings"

	"steadfast/fault"
	"steadfast/node/size"
)

// Host says what of this machine virtual machines may have.
type Host struct {
	// Memory is for all of them together; 0: three quarters of this machine's.
	Memory Size `toml:"memory"`
	// CPUs is how many this machine tells the cluster that it has; 0: those there are.
	CPUs int `toml:"cpus"`
	// Box names what dies with this host: machines are protected by hosts in two boxes. Empty: the
	// text of /etc/machine-id.
	Box string `toml:"box"`
}

// Network is where a host attaches the network cards that name it: to exactly one of
// the three.
type Network struct {
	// Name is what machines' network cards say.
	Name string `toml:"name"`
	// Switch is the socket of a "steadfast switch".
	Switch string `toml:"switch"`
	// Bridge is a bridge of this machine's kernel, on which each card gets a tap.
	Bridge string `toml:"bridge"`
	// User gives each card a network of its own, of this process: DHCP, DNS, and the way out
	// through this machine's addresses.
	User bool `toml:"user"`
}

// Bounds of what a host says.
const (
	hostMemoryMin = 16 << 20 // bytes
	hostCPUsMax   = 4096
	hostBoxMax    = 63 // bytes
	// interfaceNameMax is Linux's IFNAMSIZ without its terminating NUL, in bytes.
	interfaceNameMax = 15
)

// boxName is what a box can be called.
var boxName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// networkName is what the inventory takes as a network's name.
var networkName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// completeHost checks what a host alone says.
func (c *Config) completeHost(text []byte) error {
	wrong := func(table string, nth int, key, format string, args ...any) error {
		line := lineIn(text, table, nth, key)
		return fault.New(fault.Invalid, "line %d: %w", line, fault.New(fault.Invalid, format, args...))
	}
	const host, network = "[host]", "[[network]]"
	switch {
	case !c.Cluster.Host && c.Host != Host{}:
		return wrong(host, 0, "", "[host] is for a host; set host = true under [cluster], or take the table out")
	case !c.Cluster.Host && len(c.Networks) > 0:
		return wrong(network, 0, "", "[[network]] is for a host; set host = true under [cluster], or take the table out")
	case c.Host.Memory != 0 && c.Host.Memory < hostMemoryMin:
		return wrong(host, 0, "memory", "memory: %s is too little for a machine; at least 16M", size.Format(int64(c.Host.Memory)))
	case c.Host.CPUs < 0 || c.Host.CPUs > hostCPUsMax:
		return wrong(host, 0, "cpus", "cpus: %d is not between 0 (those there are) and %d", c.Host.CPUs, hostCPUsMax)
	}
	if b := c.Host.Box; b != "" && (len(b) > hostBoxMax || !boxName.MatchString(b)) {
		return wrong(host, 0, "box", "box: %.80q is no name of a box: letters, digits, dots and dashes, at most %d", b, hostBoxMax)
	}
	seen := map[string]bool{}
	for i := range c.Networks {
		n := &c.Networks[i]
		ways := 0
		for _, there := range []bool{n.Switch != "", n.Bridge != "", n.User} {
			if there {
				ways++
			}
		}
		switch {
		case n.Name == "":
			return wrong(network, i, "name", "[[network]] without a name; add name = \"lan\"")
		case !networkName.MatchString(n.Name):
			return wrong(network, i, "name", "name: %.80q is no name of a network: small letters, digits, dots and dashes, at most 63", n.Name)
		case seen[n.Name]:
			return wrong(network, i, "name", "name: %s is listed twice; each network needs a name of its own", n.Name)
		case ways != 1:
			return wrong(network, i, "", "the network %q has %d of switch, bridge and user = true; it takes exactly one", n.Name, ways)
		case len(n.Switch) >= socketPathMax:
			return wrong(network, i, "switch", "switch: has %d bytes; a Unix socket's path has at most %d, so choose a shorter one", len(n.Switch), socketPathMax-1)
		case len(n.Bridge) > interfaceNameMax || strings.ContainsAny(n.Bridge, "/ \t\n"):
			return wrong(network, i, "bridge", "bridge: %.80q is no name of an interface: at most %d letters and digits", n.Bridge, interfaceNameMax)
		}
		seen[n.Name] = true
		if n.Switch != "" {
			abs, err := filepath.Abs(n.Switch)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "cannot tell where "+n.Switch+" is")
			}
			n.Switch = abs
		}
	}
	return nil
}

// lineIn finds the line that sets key in the nth table of this header, counting from 1;
// the header's own line when key is empty or not there.
func lineIn(text []byte, table string, nth int, key string) int {
	line, header := 0, 0
	for l := range bytes.Lines(text) {
		line++
		s := strings.TrimSpace(string(l))
		if strings.HasPrefix(s, "[") {
			if header > 0 {
				break // the next table
			}
			if strings.HasPrefix(s, table) {
				if nth == 0 {
					header = line
				}
				nth--
			}
			continue
		}
		rest, ok := strings.CutPrefix(s, key)
		if header > 0 && key != "" && ok && strings.HasPrefix(strings.TrimSpace(rest), "=") {
			return line
		}
	}
	return max(header, 1)
}

// completeBox checks how a member's box is called: a host's may stand in either table.
func (c *Config) completeBox(text []byte) error {
	line := lineIn(text, "[cluster]", 0, "box")
	switch b := c.Cluster.Box; {
	case b == "":
		c.Cluster.Box = c.Host.Box
	case len(b) > hostBoxMax || !boxName.MatchString(b):
		return fault.New(fault.Invalid, "line %d: box: %.80q is no name of a box: letters, digits, dots and dashes, at most %d", line, b, hostBoxMax)
	case c.Host.Box != "" && c.Host.Box != b:
		return fault.New(fault.Invalid, "line %d: box: %s here and %s under [host]; say it once", line, b, c.Host.Box)
	case c.Cluster.Host:
		c.Host.Box = b
	}
	return nil
}
