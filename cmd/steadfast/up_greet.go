package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// greet says what there is and what to try.
func (p *pair) greet() {
	p.screen.say(`
Steadfast is up after %.0f s: nodes a and b and witness w, group %s at %s%s; data in %s.
ANYONE who can reach %s may read and write its volumes: for a first look only.
`, time.Since(p.began).Seconds(), upGroup, p.portal, p.greetHosts(), p.dir, p.portal)
	if p.lun >= 0 {
		p.screen.say("Volume %q is yours to use:\n\n  iscsi://%s/%s/%d\n", upVolume, p.portal, p.target, p.lun)
	}
	if p.vm != nil && p.vm.ready {
		p.screen.say("Machine %q is Debian with Redis, which writes to the group before it answers; ANYONE here may use it:\n\n  redis-cli -h %s -p %d\n",
			upMachine, p.vm.at.Addr(), p.vm.at.Port())
	}
	p.screen.say("To try, in another terminal:")
	if p.lun >= 0 {
		url := fmt.Sprintf("iscsi://%s/%s/%d", p.portal, p.target, p.lun)
		p.screen.say("  qemu-img info %s\n  iscsi-perf -t 5 -m 32 %s", url, url)
	}
	p.screen.say(`  %[5]s --socket %[1]s group show %[2]s
  %[5]s --socket %[1]s group move %[2]s
  kill -9 $(cat %[3]s)      # node a dies; the other one goes on
  %[5]s demo kill-owner --data %[4]s`, p.socket("a"), upGroup, filepath.Join(p.dir, "a", "lock"), p.dir, os.Args[0])
	p.greetGuest()
	p.screen.say("Ctrl-C ends it, and the data stays; %s down --data %s ends it and removes the data.\n\n", os.Args[0], p.dir)
}
