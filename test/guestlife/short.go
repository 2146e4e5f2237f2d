package main

import (
	"errors"
	"fmt"
	"strings"

	"steadfast/test/testbed"
)

// small is the guest of the short form: the same that test/machine records, so that one
// build serves both.
var small = testbed.Image{Name: "small", Profile: "minimal", Size: "512M", Packages: []string{"redis-server", "redis-tools"}}

// redisPort is Redis'.
const redisPort = 6379

// short is what CI runs.
func (r *run) short() (err error) {
	if err := r.build(small); err != nil {
		if errors.Is(err, errSkip) {
			r.skip("guests", err.Error())
			return nil
		}
		return err
	}
	g, err := r.boot(machine{image: small, memory: "512M", ports: []int{redisPort}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	r.tryAll(g, []step{
		{"boot to the login, and a command", booted},
		{"redis, each answer checked", func(g *guest) error {
			_, err := redisChecked(g, 0, shortLoad)
			return err
		}},
		{"redis-benchmark", func(g *guest) error { return redisBenchmark(g, 500) }},
		{"power button", func(g *guest) error { return errors.Join(g.powerOff(), r.clean(r.disk(small))) }},
	})
	return r.ctx.Err()
}

// booted waits for the login, and looks at what has booted.
func booted(g *guest) error {
	if err := g.login(); err != nil {
		return err
	}
	kernel, err := g.shell("uname -r")
	if err != nil {
		return err
	}
	root, err := g.shell("grep ' / ' /proc/mounts | tail -n 1")
	if err != nil {
		return err
	}
	version, err := g.shell("cat /etc/debian_version")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(kernel, "6.12.") || !strings.HasPrefix(root, "/dev/vda / ext4 rw") || !strings.HasPrefix(version, "13") {
		return fmt.Errorf("it is Debian %s with kernel %s on %s, and was to be 13 with 6.12 on ext4 on /dev/vda", version, kernel, root)
	}
	g.remark("Debian %s, kernel %s", version, kernel)
	return g.says("42", "echo $((6 * 7))")
}
