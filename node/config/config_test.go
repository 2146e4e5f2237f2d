package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
	"steadfast/node/config"
)

func TestParse(t *testing.T) {
	got, err := config.Parse([]byte(`
data_dir = "/srv/steadfast"
socket = "/tmp/api.sock"
metrics_address = "127.0.0.1:9620"
cache_size = "1G"
drain_timeout = "5s"
[log]
level = "debug"
format = "json"
[[portal]]
address = "192.0.2.1:3260"
[[portal]]
address = "[2001:db8::1]:3260"
[[portal]]
address = "192.0.2.3:3260"
group = 7
[discovery]
chap_user = "find"
chap_secret_file = "/etc/steadfast/discovery"
[limits]
sessions = 100
memory = 1048576
`))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		DataDir: "/srv/steadfast", Socket: "/tmp/api.sock", Metrics: "127.0.0.1:9620", Cache: 1 << 30, Drain: config.Duration(5 * time.Second),
		Log:       config.Log{Level: -4, Format: "json"},
		Portals:   []config.Portal{{Address: "192.0.2.1:3260", Group: 1}, {Address: "[2001:db8::1]:3260", Group: 2}, {Address: "192.0.2.3:3260", Group: 7}},
		Discovery: config.Discovery{User: "find", SecretFile: "/etc/steadfast/discovery"},
		Limits:    config.Limits{Sessions: 100, Memory: 1 << 20},
		Cluster:   config.Cluster{AliasPort: config.DefaultPort},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestHost: a host says what machines may have, and where their networks are.
func TestHost(t *testing.T) {
	got, err := config.Parse([]byte(`
[cluster]
host = true
[host]
memory = "4G"
cpus = 3
box = "rack1"
[[network]]
name = "lan"
switch = "/run/switch.sock"
[[network]]
name = "dmz"
bridge = "br0"
[[network]]
name = "out"
user = true
`))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Cluster.Host = true
	want.Cluster.Box = "rack1"
	want.Host = config.Host{Memory: 4 << 30, CPUs: 3, Box: "rack1"}
	want.Networks = []config.Network{{Name: "lan", Switch: "/run/switch.sock"}, {Name: "dmz", Bridge: "br0"}, {Name: "out", User: true}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestErrors: each error says the line and what to do.
func TestErrors(t *testing.T) {
	const host = "[cluster]\nhost = true\n"
	for _, c := range []struct{ text, want string }{
		{"data_dir = \"/x\"\ncach_size = \"1G\"\n", `line 2: unknown key "cach_size"; see packaging/steadfast.toml`},
		{"\ndata = \"/x\"\n", `line 2: unknown key "data"; did you mean "data_dir"?`},
		{"portals = [\":3260\"]\n", "line 1: unknown key \"portals\"; write one [[portal]]"},
		{"data_dir = \n", "line 1: "},
		{"\n\ncache_size = \"lots\"\n", `line 3: size "lots" has no unit`},
		{"cache_size = \"1M\"\n", "line 1: cache_size: 1 MiB is too small; at least 16M"},
		{"drain_timeout = \"soon\"\n", `line 1: "soon" is not a length of time`},
		{"[log]\nlevel = \"loud\"\n", `line 2: "loud" is none of debug`},
		{"[[portal]]\naddress = \"san1:3260\"\n", "line 2: \"san1\" is not an IP address"},
		{"[[portal]]\naddress = \"192.0.2.1\"\n", "line 2: \"192.0.2.1\" is not an address with a port"},
		{"[[portal]]\naddress = \"192.0.2.1:99999\"\n", "line 2: \"99999\" is not a port"},
		{"[[portal]]\naddress = \":1\"\n[[portal]]\ngroup = 2\n", "line 3: [[portal]] without an address"},
		{"[[portal]]\naddress = \":1\"\n[[portal]]\naddress = \":1\"\n", "line 4: address: :1 is listed twice"},
		{"[[portal]]\naddress = \":1\"\ngroup = 70000\n", "line 3: "},
		{"[discovery]\nchap_user = \"x\"\n", "line 2: chap_user: chap_user and chap_secret_file go together"},
		{"[host]\nmemory = \"4G\"\n", "line 1: [host] is for a host; set host = true"},
		{"[[network]]\nname = \"lan\"\nuser = true\n", "line 1: [[network]] is for a host; set host = true"},
		{host + "[limits]\nmemory = 5\n[host]\nmemory = 5\n", "line 6: memory: 5 B is too little for a machine"},
		{host + "[host]\ncpus = -1\n", "line 4: cpus: -1 is not between"},
		{host + "[host]\nbox = \"rack 1\"\n", "line 4: box: \"rack 1\" is no name of a box"},
		{"[cluster]\nbox = \"rack 1\"\n", "line 2: box: \"rack 1\" is no name of a box"},
		{host + "box = \"a\"\n[host]\nbox = \"b\"\n", "line 3: box: a here and b under [host]; say it once"},
		{host + "[host]\ncpu = 1\n", "line 4: unknown key \"host.cpu\"; did you mean \"cpus\"?"},
		{host + "[[network]]\nuser = true\n", "line 3: [[network]] without a name"},
		{host + "[[network]]\nname = \"LAN\"\nuser = true\n", "line 4: name: \"LAN\" is no name of a network"},
		{host + "[[network]]\nname = \"lan\"\n", "line 3: the network \"lan\" has 0 of switch, bridge and user"},
		{host + "[[network]]\nname = \"lan\"\nuser = true\nbridge = \"br0\"\n", "line 3: the network \"lan\" has 2 of switch"},
		{host + "[[network]]\nname = \"a\"\nuser = true\n[[network]]\nuser = true\nname = \"a\"\n", "line 8: name: a is listed twice"},
		{host + "[[network]]\nname = \"a\"\nbridge = \"a-bridge-too-long\"\n", "line 5: bridge: \"a-bridge-too-long\" is no name of an interface"},
		{host + "[[network]]\nname = \"a\"\nswitch = \"/" + strings.Repeat("x", 120) + "\"\n", "line 5: switch: has 121 bytes"},
		{"networks = 1\n", "line 1: unknown key \"networks\"; write one [[network]]"},
		{"socket = \"/" + strings.Repeat("x", 120) + "\"\n", "line 1: socket: has 121 bytes"},
	} {
		_, err := config.Parse([]byte(c.text))
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// TestBox: a box is any member's, and a host's may stand in either table.
func TestBox(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "[cluster]\nbox = \"rack1\"\n": "rack1", "[cluster]\nhost = true\nbox = \"rack1\"\n": "rack1", "[cluster]\nhost = true\n[host]\nbox = \"rack1\"\n": "rack1",
	} {
		c, err := config.Parse([]byte(text))
		if err != nil || c.Cluster.Box != want || c.Cluster.Host && c.Host.Box != want {
			t.Errorf("%q: %q, %q, %v", text, c.Cluster.Box, c.Host.Box, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := config.Load(filepath.Join(dir, "none.toml")); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("a missing file: %v", err)
	}
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("x = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(bad); err == nil || !strings.HasPrefix(err.Error(), bad+": line 1: ") {
		t.Errorf("a bad file: %v", err)
	}
}

// TestExample: the packaged example is valid, and states the defaults.
func TestExample(t *testing.T) {
	got, err := config.Load(filepath.Join("..", "..", "packaging", "steadfast.toml"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := config.Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestHostExample: the packaged file of a host is one, and with what it has commented out as well.
func TestHostExample(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "steadfast-host.toml"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(text)
	if err != nil || !c.Cluster.Host || c.Host != (config.Host{}) || len(c.Networks) > 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	c, err = config.Parse([]byte(strings.NewReplacer("\n#[", "\n[", "\n#memory", "\nmemory", "\n#name", "\nname", "\n#bridge", "\nbridge").Replace(string(text))))
	if err != nil || c.Host.Memory != 4<<30 || len(c.Networks) != 1 || c.Networks[0].Bridge != "br0" {
		t.Errorf("%+v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("data_dir = \"/x\"\n[[portal]]\naddress = \":3260\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := config.Parse(text); err == nil && (len(c.Portals) == 0 && c.Portals == nil || c.Socket == "") {
			t.Errorf("incomplete: %+v", c)
		}
	})
}
