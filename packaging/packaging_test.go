// Package packaging_test holds the files that are installed beside the binary to
// the tools that will read them. What a machine does not have is skipped, and
// said; test/need installs it.
package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// run runs a tool, or skips the test when it is not there.
func run(t *testing.T, remedy, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not here: %s", name, remedy)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAlertRules: the rules can be read, fire when they should, and only then.
func TestAlertRules(t *testing.T) {
	const remedy = "apt-get install prometheus"
	run(t, remedy, "promtool", "check", "rules", "alerts.yml")
	run(t, remedy, "promtool", "test", "rules", "alerts_test.yml")
}

// TestEveryRuleIsTested: each has a case in which it fires and one in which it
// is silent, and says what to do.
func TestEveryRuleIsTested(t *testing.T) {
	rules, tests := read(t, "alerts.yml"), read(t, "alerts_test.yml")
	blocks := strings.Split(rules, "      - alert: ")[1:]
	if len(blocks) < 20 {
		t.Fatalf("%d rules were found", len(blocks))
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, c := range regexp.MustCompile(`(?m)- alertname: (\w+)\n.*\n +exp_alerts:( \[\])?$`).FindAllStringSubmatch(tests, -1) {
		if c[2] == "" {
			fires[c[1]] = true
		} else {
			silent[c[1]] = true
		}
	}
	for _, b := range blocks {
		name, _, _ := strings.Cut(b, "\n")
		if !fires[name] || !silent[name] {
			t.Errorf("%s: tested to fire: %v, tested to be silent: %v", name, fires[name], silent[name])
		}
		for _, part := range []string{"severity: ", "summary: ", "description: "} {
			if !strings.Contains(b, part) {
				t.Errorf("%s has no %s", name, strings.TrimSuffix(part, ": "))
			}
		}
	}
}

// TestUnits: systemd takes the unit files. It would miss the binary they start,
// so here they start one that there is.
func TestUnits(t *testing.T) {
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) != 3 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		t.Run(unit, func(t *testing.T) {
			text := read(t, unit)
			copied := filepath.Join(t.TempDir(), unit)
			if err := os.WriteFile(copied, []byte(strings.ReplaceAll(text, "/usr/bin/steadfast", "/bin/true")), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "apt-get install systemd", "systemd-analyze", "verify", "--man=no", copied)
		})
	}
}

// TestNodeUnit: what a node in a cluster cannot do without.
func TestNodeUnit(t *testing.T) {
	text := read(t, "steadfast.service")
	for _, line := range []string{
		"KillMode=process",   // else the guard ends before it has told of the node's death
		"OOMPolicy=continue", // the guard's death is no reason to end the node
		"NotifyAccess=main",  // the guard does not speak for the service
		"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET", // alias addresses
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	// Alias addresses need /proc/sys/net to be writable.
	if strings.Contains(text, "\nProtectKernelTunables=yes\n") {
		t.Error("/proc/sys is read-only: promote_secondaries cannot be set")
	}
}

// TestHostUnit: what a host cannot do without, and what is not a storage node's beside it, which
// ends and takes its directories away without it.
func TestHostUnit(t *testing.T) {
	text := read(t, "steadfast-host.service")
	for _, line := range []string{
		"KillMode=process",   // else the guard ends before it has told of the host's death
		"OOMPolicy=continue", // a machine's death is no reason to end the others
		"NotifyAccess=main",  // neither guard nor machines speak for the service
		"StateDirectory=steadfast-host",
		"RuntimeDirectory=steadfast-host",
		"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK", // taps
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	for _, device := range []string{"PrivateDevices=yes", "DevicePolicy=", "ProtectClock="} {
		if strings.Contains(text, "\n"+device) {
			t.Errorf("%s: taps need /dev/net/tun", device)
		}
	}
	if strings.Contains(text, "\nOOMScoreAdjust=") {
		t.Error("where memory is short a machine goes before storage does")
	}
	file := read(t, "steadfast-host.toml")
	for _, key := range []string{`data_dir = "/var/lib/steadfast-host"`, `socket = "/run/steadfast-host/api.sock"`, "host = true"} {
		if !strings.Contains(file, "\n"+key+"\n") {
			t.Errorf("the file has no line %q", key)
		}
	}
}

// TestPackageLists: what nfpm.yaml takes from the tree is there, and each unit is named by the
// scripts that run at removal and purge.
func TestPackageLists(t *testing.T) {
	list := read(t, "nfpm.yaml")
	checked := 0
	for _, m := range regexp.MustCompile(`(?m)src: "?([^",$]+)"?,|: (packaging/debian/\w+)$`).FindAllStringSubmatch(list, -1) {
		path := m[1] + m[2]
		checked++
		if files, err := filepath.Glob(filepath.Join("..", path)); err != nil || len(files) == 0 {
			t.Errorf("there is no %s: %v", path, err)
		}
	}
	if checked < 12 {
		t.Errorf("%d files were found", checked)
	}
	units, err := filepath.Glob("*.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range units {
		for _, script := range []string{"postinst", "prerm", "postrm"} {
			if !strings.Contains(read(t, filepath.Join("debian", script)), " "+unit) {
				t.Errorf("%s does not know %s", script, unit)
			}
		}
	}
	// A purge takes no data: nothing is removed by a folder.
	if regexp.MustCompile(`(?m)^\s*rm -[a-z]*r`).MatchString(read(t, "debian/postrm")) {
		t.Error("postrm removes folders")
	}
}

// TestScripts: the shell takes the maintainer's scripts, and they do nothing at what dpkg does
// not ask for.
func TestScripts(t *testing.T) {
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		run(t, "", "sh", "-n", filepath.Join("debian", script))
	}
	for _, script := range []string{"postinst", "prerm"} {
		if out, err := exec.Command("sh", filepath.Join("debian", script), "nonsense").CombinedOutput(); err == nil {
			t.Errorf("%s nonsense: %s", script, out)
		}
	}
}

// TestFirewall: nft takes the rules, twice as well as once, and they leave other tables alone.
func TestFirewall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("nft needs root, also to check rules")
	}
	run(t, "apt-get install nftables", "nft", "--check", "--file", "steadfast.nft")
	if regexp.MustCompile(`(?m)^\s*flush ruleset`).MatchString(read(t, "steadfast.nft")) {
		t.Error("the rules flush the node's own table")
	}
}
