package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// life is what the package goes through in a box, one step after the other. A step is a bash
// script that ends with 0 when all is right.
var life = []struct{ name, script string }{
	{"nothing is there", `no ls /etc/steadfast /usr/bin/steadfast; list >/tmp/before`},
	{"it is installed", `dpkg -i /root/steadfast.deb`},
	{"dpkg finds all files as they were packed", `out=$(dpkg --verify steadfast); [ -z "$out" ]`},
	{"the program runs, and says its version", `[ "$(steadfast version)" = "steadfast $(dpkg-query -f '${Version}' -W steadfast)" ]; (ldd /usr/bin/steadfast 2>&1 || true) | has 'not a dynamic'`},
	{"the configuration is right, and dpkg's to keep", `steadfast node --config /etc/steadfast/steadfast.toml --check; steadfast node --config /etc/steadfast/host.toml --check
		dpkg-query -f '${Conffiles}' -W steadfast | has /etc/steadfast/steadfast.toml`},
	{"nothing is enabled, nothing runs", `no ls /etc/systemd/system/*/steadfast*; no pidof steadfast`},
	{"systemd takes the units", `systemd-analyze verify --man=no /usr/lib/systemd/system/steadfast*.service`},
	{"folders and files can be read by all", `out=$(find $(dpkg -L steadfast) -maxdepth 0 \( ! -perm -o+r -o -type d ! -perm -o+x \)); [ -z "$out" ]`},
	{"man finds the pages and has nothing to say against them", `for p in steadfast steadfast-vm-create steadfast-ft steadfast.toml; do out=$(man --warnings "$p" 2>&1 >/dev/null); [ -z "$out" ] || { echo "$p: $out"; exit 1; }; done
		man steadfast | has 'EXIT STATUS'; man steadfast-vm-create | has --disk; man 5 steadfast.toml | has alias_port`},
	{"bash completes", `source /usr/share/bash-completion/completions/steadfast; complete -p steadfast; [[ $(steadfast __complete gro 2>/dev/null) == *group* ]]`},
	{"zsh and fish read their files, if they are here", `no command -v zsh || zsh -n /usr/share/zsh/vendor-completions/_steadfast
		no command -v fish || fish -n /usr/share/fish/vendor_completions.d/steadfast.fish`},
	{"every licence is there", `[ $(grep -c '^==== ' /usr/share/doc/steadfast/copyright) -gt 20 ]`},
	{"a node starts as its unit says", `systemctl enable --now steadfast; steadfast status | has serving`},
	{"an upgrade leaves it running, says so, and keeps what was changed", `was=$(cat /run/steadfast.pid); echo '# mine' >>/etc/steadfast/steadfast.toml
		dpkg -i /root/steadfast.deb >/tmp/said; grep -q 'what runs goes on as it is' /tmp/said; [ "$was" = "$(cat /run/steadfast.pid)" ]; kill -0 "$was"; tail -1 /etc/steadfast/steadfast.toml | has '# mine'`},
	{"it is removed, and its configuration stays", `systemctl disable --now steadfast; dpkg --remove steadfast; no ls /usr/bin/steadfast; tail -1 /etc/steadfast/steadfast.toml | has '# mine'`},
	{"it is purged, and what the node knows stays, which is said", `dpkg --purge steadfast >/tmp/said; grep -q '/var/lib/steadfast is kept' /tmp/said; ls /var/lib/steadfast/control.db`},
	{"nothing else is left", `rm -r /var/lib/steadfast; list >/tmp/after; diff /tmp/before /tmp/after`},
}

// functions are what the scripts use: no, for set -e does not see that "! command" fails; has,
// for grep -q ends before who writes to it, and pipefail sees that; and list, which lists what
// an installation may have left.
const functions = `no() { if "$@" >/dev/null 2>&1; then echo "it does: $*"; return 1; fi; }
has() { [ "$(grep -c -e "$1")" != 0 ] || { echo "nothing has $1"; return 1; }; }
list() { find /etc /usr /var/lib /run -xdev -name '*steadfast*' ! -path '/usr/local/*' ! -name 'steadfast.pid' ! -name 'steadfast.st*' | sort; }
`

// packageLife installs, upgrades, removes and purges the package in a box.
func (r *run) packageLife(ctx context.Context) error {
	if _, err := os.Stat(r.deb); err != nil {
		return fmt.Errorf("%w: make deb", err)
	}
	b, err := newBox(r.dir, "deb", "")
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.install("/usr/local/bin/systemctl", systemctlScript); err != nil {
		return err
	}
	if err := b.copy(r.deb, "/root/steadfast.deb", "0644"); err != nil {
		return err
	}
	t, err := b.terminal()
	if err != nil {
		return err
	}
	defer t.close()
	for _, step := range life {
		started := time.Now()
		out, status, err := t.enter(ctx, "(set -eo pipefail; "+functions+step.script+"\n)", patience)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", step.name, err, out)
		}
		fmt.Printf("%6.1fs  %s\n", time.Since(started).Seconds(), step.name)
		if status != 0 {
			r.failed++
			fmt.Printf("FAIL %s: status %d\n%s\n", step.name, status, strings.TrimSpace(out))
			continue
		}
		r.passed++
	}
	return nil
}
