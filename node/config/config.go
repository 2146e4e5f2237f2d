// Package config reads a node's configuration file: what the node needs to
// know before its control state can be opened, and nothing an administrator
// changes while it runs. packaging/steadfast.toml is the commented example.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"steadfast/fault"
	"steadfast/node/size"
)

// DefaultPath is read when no file is named.
const DefaultPath = "/etc/steadfast/steadfast.toml"

// DefaultSocket is where the API is served unless the file says otherwise.
const DefaultSocket = "/run/steadfast/api.sock"

// DefaultPort is iSCSI's. RFC 7143, 13.2 (registered by IANA).
const DefaultPort = 3260

// socketPathMax is what a Unix socket's address holds, in bytes, with its
// terminating NUL. unix(7).
const socketPathMax = 108

// Config is a node's configuration, complete and checked.
type Config struct {
	// DataDir holds the control state, the secrets and the lock.
	DataDir string `toml:"data_dir"`
	// Socket is the Unix socket of the API.
	Socket string `toml:"socket"`
	// Metrics is an address to serve /metrics on; empty: the socket only.
	Metrics Address `toml:"metrics_address"`
	// Cache bounds the memory for cached blocks and map nodes, per pool.
	Cache Size `toml:"cache_size"`
	// Drain is how long a stop waits for initiators to log out.
	Drain Duration `toml:"drain_timeout"`
	Log   Log      `toml:"log"`
	// Portals are the addresses that initiators log in at.
	Portals   []Portal  `toml:"portal"`
	Discovery Discovery `toml:"discovery"`
	Limits    Limits    `toml:"limits"`
	Cluster   Cluster   `toml:"cluster"`
	Host      Host      `toml:"host"`
	Networks  []Network `toml:"network"`
}

// Cluster says how the node is a member of a cluster; which one, and under what
// name, is said by "steadfast cluster init" and "join".
type Cluster struct {
	// Witness: the node only votes. It has no pools and no portals.
	Witness bool `toml:"witness"`
	// Host: the node runs machines. It has no pools, no portals and no vote.
	Host bool `toml:"host"`
	// Listen is where other members are answered; empty: at the address that the
	// cluster has for this member.
	Listen Address `toml:"listen"`
	// AliasPort is where groups' alias portals listen.
	AliasPort uint16 `toml:"alias_port"`
	// HandedAliases: another process of this machine holds the groups' alias
	// addresses, and hands over the connections that come in; see package
	// node/handed. For a trial without root.
	HandedAliases bool `toml:"handed_aliases"`
	// Box names what dies with this member, as a rack; empty: this computer. Of a host it is
	// Host.Box as well.
	Box string `toml:"box"`
}

// Stores tells whether the node is a storage node: one with pools and portals.
func (c Cluster) Stores() bool { return !c.Witness && !c.Host }

// Log says what is logged and how.
type Log struct {
	Level  Level  `toml:"level"`
	Format Format `toml:"format"`
}

// Portal is an address to listen on for iSCSI.
type Portal struct {
	Address Address `toml:"address"`
	// Group is the portal group tag, 1 to 65535; 0 in the file: the portal's
	// place in it, so that every portal is a path of its own to initiators.
	Group uint16 `toml:"group"`
}

// Discovery says what an initiator must prove to ask for the targets' names.
type Discovery struct {
	User       string `toml:"chap_user"`
	SecretFile string `toml:"chap_secret_file"`
}

// Limits bound what initiators can make the node hold. Zero: the default.
type Limits struct {
	Sessions   int  `toml:"sessions"`
	QueueDepth int  `toml:"queue_depth"`
	Memory     Size `toml:"memory"`
}

// Default returns the configuration of an empty file.
func Default() Config {
	return Config{
		DataDir: "/var/lib/steadfast",
		Socket:  DefaultSocket,
		Cache:   256 << 20,
		Drain:   Duration(20 * time.Second),
		Log:     Log{Format: "text"},
		Cluster: Cluster{AliasPort: DefaultPort},
	}
}

// Load reads the file at path. Errors are of kind fault.Invalid (fault.NotFound
// when there is no file) and name the file, the line and the remedy.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fault.New(fault.NotFound, "no configuration file %s; name one with --config, or copy the example from packaging/steadfast.toml", path)
	}
	if err != nil {
		return Config{}, fault.Wrap(fault.Invalid, err, "cannot read the configuration")
	}
	c, err := Parse(text)
	if err != nil {
		return Config{}, fault.Wrap(fault.KindOf(err), err, path)
	}
	return c, nil
}

// Parse reads a configuration from text. Errors are of kind fault.Invalid and
// begin with the line.
func Parse(text []byte) (Config, error) {
	c := Default()
	meta, err := toml.NewDecoder(bytes.NewReader(text)).Decode(&c)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return Config{}, fault.New(fault.Invalid, "line %d: %s", pe.Position.Line, strings.TrimPrefix(pe.Message, "toml: "))
		}
		return Config{}, fault.Wrap(fault.Invalid, err, "cannot be read")
	}
	// An unknown key is a mistyped one: taking the default silently would be
	// noticed when it is too late.
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0]
		return Config{}, fault.New(fault.Invalid, "line %d: unknown key %q%s", lineOf(text, key[len(key)-1], 0), key, suggest(key))
	}
	if err := c.complete(text); err != nil {
		return Config{}, err
	}
	return c, nil
}

// complete fills in what depends on other values and checks the whole.
func (c *Config) complete(text []byte) error {
	at := func(key string, nth int, format string, args ...any) error {
		return fault.New(fault.Invalid, "line %d: %s: %w", lineOf(text, key, nth), key, fmt.Errorf(format, args...))
	}
	switch {
	case c.DataDir == "":
		return at("data_dir", 0, "is empty; name a directory that survives restarts")
	case c.Socket == "":
		return at("socket", 0, "is empty; name a path for the API's socket")
	case len(c.Socket) >= socketPathMax:
		return at("socket", 0, "has %d bytes; a Unix socket's path has at most %d, so choose a shorter one", len(c.Socket), socketPathMax-1)
	case c.Cache < 16<<20:
		return at("cache_size", 0, "%s is too small; at least 16M", size.Format(int64(c.Cache)))
	case c.Drain < 0:
		return at("drain_timeout", 0, "is negative")
	case c.Limits.Sessions < 0 || c.Limits.Sessions > 65000:
		return at("sessions", 0, "%d is not between 0 (the default) and 65000", c.Limits.Sessions)
	case c.Limits.QueueDepth < 0 || c.Limits.QueueDepth > 4096:
		return at("queue_depth", 0, "%d is not between 0 (the default) and 4096", c.Limits.QueueDepth)
	case c.Cluster.Witness && c.Cluster.Host:
		return at("host", 0, "a node is a witness, or a host, or neither; run one process for each")
	case (c.Discovery.User == "") != (c.Discovery.SecretFile == ""):
		return at("chap_user", 0, "chap_user and chap_secret_file go together; give both or none")
	}
	if c.Portals == nil && c.Cluster.Stores() {
		c.Portals = []Portal{{Address: Address(net.JoinHostPort("", strconv.Itoa(DefaultPort)))}}
	}
	seen := map[Address]bool{}
	for i := range c.Portals {
		p := &c.Portals[i]
		if p.Address == "" {
			return fault.New(fault.Invalid, "line %d: [[portal]] without an address; add address = \"0.0.0.0:%d\"", lineOf(text, "[[portal]]", i), DefaultPort)
		}
		if seen[p.Address] {
			return at("address", i, "%s is listed twice; each portal needs an address of its own", p.Address)
		}
		seen[p.Address] = true
		if p.Group == 0 {
			p.Group = uint16(i + 1)
		}
	}
	if err := c.completeHost(text); err != nil {
		return err
	}
	if err := c.completeBox(text); err != nil {
		return err
	}
	for _, p := range []*string{&c.DataDir, &c.Discovery.SecretFile} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot tell where "+*p+" is")
		}
		*p = abs
	}
	return nil
}

// lineOf finds the nth line that sets key, counting from 1. TOML's decoder
// tells positions only of values it could not read.
func lineOf(text []byte, key string, nth int) int {
	line := 0
	for l := range bytes.Lines(text) {
		line++
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(l)), key)
		if !ok || !strings.HasPrefix(key, "[") && !strings.HasPrefix(strings.TrimSpace(rest), "=") {
			continue
		}
		if nth--; nth < 0 {
			return line
		}
	}
	return max(line, 1)
}

// known are the keys of the file, by their last part.
func known() []string {
	return []string{
		"data_dir", "socket", "metrics_address", "cache_size", "drain_timeout", "level", "format", "address", "group", "log", "portal",
		"discovery", "limits", "chap_user", "chap_secret_file", "sessions", "queue_depth", "memory",
		"cluster", "witness", "host", "listen", "alias_port", "handed_aliases", "box", "cpus", "network", "name", "switch", "bridge", "user",
	}
}

// suggest ends an unknown key's message.
func suggest(key toml.Key) string {
	last := key[len(key)-1]
	switch last {
	case "portals":
		return "; write one [[portal]] table for each portal"
	case "networks":
		return "; write one [[network]] table for each network"
	}
	all := known()
	slices.Sort(all)
	for _, k := range all {
		if strings.Contains(k, last) || strings.Contains(last, k) {
			return fmt.Sprintf("; did you mean %q?", k)
		}
	}
	return "; see packaging/steadfast.toml for the keys there are"
}

// Size is an amount of bytes: a number, or a text like "256M".
type Size int64

// UnmarshalTOML implements toml.Unmarshaler.
func (s *Size) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case int64:
		if v < 0 {
			return errors.New("a size cannot be negative")
		}
		*s = Size(v)
		return nil
	case string:
		n, err := size.Parse(v)
		*s = Size(n)
		return err
	}
	return errors.New(`a size is a number of bytes or a text like "256M"`)
}

// Duration is a length of time: a text like "20s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a length of time like "20s"`, text)
	}
	*d = Duration(v)
	return nil
}

// Address is host:port with an IP address (or none: every address) and a
// port. A bare host gets iSCSI's port only where complete says so.
type Address string

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(text []byte) error {
	s := string(text)
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf(`%q is not an address with a port like "192.0.2.1:3260" or "[2001:db8::1]:3260"`, s)
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q is not an IP address; names are not looked up, so that a node starts without DNS", host)
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q is not a port number", port)
	}
	*a = Address(s)
	return nil
}

// Level is how much is logged.
type Level slog.Level

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(text []byte) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	v, ok := levels[string(text)]
	if !ok {
		return fmt.Errorf("%q is none of debug, info, warn, error", text)
	}
	*l = Level(v)
	return nil
}

// Format is the form of log lines.
type Format string

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(text []byte) error {
	if s := string(text); s != "text" && s != "json" {
		return fmt.Errorf("%q is neither text nor json", s)
	}
	*f = Format(text)
	return nil
}
