package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"steadfast/test/testbed"
)

// guestPatience bounds what the guest may take for one thing, a boot too: this machine may have
// much else to do.
const guestPatience = 6 * time.Minute

// guest is the machine's console, by "vm console" on the witness, which nobody hurts. A console
// that ends with its machine, or with a node, is attached to anew.
type guest struct {
	*testbed.Console
	site  *site
	typed *typist
	stop  context.CancelFunc
	ended sync.WaitGroup

	resumed int // so often

	mu   sync.Mutex
	hang context.CancelFunc // ends the present attachment
}

// typist passes what is typed to the console that is attached at present.
type typist struct {
	mu sync.Mutex
	in io.Writer
}

// Write implements io.Writer. What nobody takes is lost, as on a line that is not connected.
func (t *typist) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in == nil {
		return len(p), nil
	}
	_, _ = t.in.Write(p) // it has just ended
	return len(p), nil
}

func (t *typist) attach(in io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in = in
}

// attach attaches to the machine's console until Close. log gets all that it says.
func attach(ctx context.Context, s *site, log *os.File) *guest {
	ctx, stop := context.WithCancel(ctx)
	g := &guest{site: s, typed: &typist{}, stop: stop, hang: func() {}}
	g.Console = testbed.NewConsole(g.typed, log, guestPatience)
	g.ended.Go(func() {
		for ctx.Err() == nil {
			if err := g.once(ctx); err != nil && ctx.Err() == nil {
				_, _ = fmt.Fprintf(log, "\n[the console has ended: %v]\n", err)
			}
			pause(ctx, time.Second)
		}
	})
	return g
}

// once attaches, until the console ends.
func (g *guest) once(ctx context.Context) error {
	ctx, hang := context.WithCancel(ctx)
	defer hang()
	g.mu.Lock()
	g.hang = hang
	g.mu.Unlock()
	cmd := g.site.witness.Command(ctx, "vm", "console", machineName)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = g.Console, &said
	if err := g.site.witness.Space.StartIn(cmd); err != nil {
		return err
	}
	g.typed.attach(in)
	err = cmd.Wait()
	g.typed.attach(nil)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return err
}

// reattach leaves a console that may be one of a host that says nothing any more.
func (g *guest) reattach() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hang()
}

// resume leaves the console of a host that the machine may not live on any more, and goes on in
// the same shell.
func (g *guest) resume(ctx context.Context) error {
	g.reattach()
	g.resumed++
	nudge, enough := context.WithCancel(ctx)
	var nudging sync.WaitGroup
	nudging.Go(func() {
		for ; nudge.Err() == nil; pause(nudge, nudgeEvery) {
			_ = g.Type(fmt.Sprintf("echo resu''med-%d-", g.resumed)) // a typist never fails
		}
	})
	_, err := g.Await(ctx, fmt.Sprintf("resumed-%d-", g.resumed))
	enough()
	nudging.Wait()
	return err
}

// Close leaves the console.
func (g *guest) Close() {
	g.stop()
	g.ended.Wait()
}

// nudgeEvery is how often an empty line is typed at a prompt that was perhaps shown to nobody.
const nudgeEvery = 5 * time.Second

// login logs in. The prompt is called for, as it may have been shown to nobody.
func (g *guest) login(ctx context.Context) error {
	nudge, enough := context.WithCancel(ctx)
	var nudging sync.WaitGroup
	nudging.Go(func() {
		for pause(nudge, nudgeEvery); nudge.Err() == nil; pause(nudge, nudgeEvery) {
			_ = g.Type("") // a typist never fails
		}
	})
	_, err := g.Await(ctx, "login: ")
	enough()
	nudging.Wait()
	if err != nil {
		return err
	}
	if err := g.Type(""); err != nil { // for the prompt that Login waits for
		return err
	}
	return g.Login(ctx)
}

// beat has the guest say its boot's name and a number five times a second, by UDP: who hears
// that knows which life of the machine lives.
const beat = `#!/bin/bash
[ "$1" = start ] || exit 0
(
  boot=$(cat /proc/sys/kernel/random/boot_id); i=0
  while :; do i=$((i+1)); echo "$boot $i" >/dev/udp/` + clientAddress + `/` + beatPort + `; sleep 0.2; done
) >/dev/null 2>&1 </dev/null &
`

// provision makes the guest what is tried: Redis that answers when its file is flushed, and the
// beat. Both begin with each boot, without anybody. It is done once.
func (g *guest) provision(ctx context.Context) error {
	if _, err := g.Shell(ctx, `c=/etc/redis/redis.conf
		sed -i -e 's/^bind .*/bind 0.0.0.0/' -e 's/^protected-mode .*/protected-mode no/' -e 's/^appendonly .*/appendonly yes/' -e 's/^appendfsync .*/appendfsync always/' $c
		echo 'save ""' >>$c
		/etc/init.d/redis-server restart
		until redis-cli config get appendfsync 2>/dev/null | grep -q always; do sleep 0.2; done
		redis-cli config get appendonly | grep -q yes`); err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(beat), "\n") {
		if _, err := g.Shell(ctx, "echo '%s' >>/etc/init.d/beat", line); err != nil {
			return err
		}
	}
	_, err := g.Shell(ctx, "chmod 755 /etc/init.d/beat; ln -s ../init.d/beat /etc/rc2.d/S99beat; sync; /etc/rc2.d/S99beat start")
	return err
}

// trouble is what a kernel says of a disk that failed.
const trouble = `I/O error|Buffer I/O|EXT4-fs error|EXT4-fs warning|Remounting filesystem read-only|blocked for more than|Oops`

// healthy fails if the guest's kernel has seen trouble of its disks, or its root can no longer be
// written.
func (g *guest) healthy(ctx context.Context) error {
	out, err := g.Shell(ctx, `dmesg | grep -E '%s' | tail -n 20; touch /root/alive && sync`, trouble)
	if err == nil && out != "" {
		err = fmt.Errorf("the guest's kernel says: %s", out)
	}
	return err
}

// fioJob writes random blocks of the data disk and reads each back; it is bounded, as the
// guest's processor is an interpreter that others need, too.
const fioJob = "fio --name=v --filename=/dev/vdb --size=1m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --rate_iops=150 --verify=crc32c --verify_fatal=1"

// verifyBegin has fio write and verify without end.
func (g *guest) verifyBegin(ctx context.Context) error {
	_, err := g.Shell(ctx, `rm -f /run/fio.*; (n=0; while [ ! -e /run/fio.stop ]; do %s --randseed=$n >/run/fio.log 2>&1 || { cp /run/fio.log /run/fio.bad; break; }; n=$((n+1)); echo $n >/run/fio.n; done; touch /run/fio.ended) >/dev/null 2>&1 &`, fioJob)
	return err
}

// verified tells how many rounds of fio were good, and fails if one was not.
func (g *guest) verified(ctx context.Context) (int, error) {
	out, err := g.Shell(ctx, "if [ -e /run/fio.bad ]; then tail -n 20 /run/fio.bad; exit 1; fi; cat /run/fio.n 2>/dev/null || echo 0")
	if err != nil {
		return 0, fmt.Errorf("fio in the guest: %w", err)
	}
	return strconv.Atoi(out)
}

// verifiedAgain waits for one more whole round of fio than there were.
func (g *guest) verifiedAgain(ctx context.Context, after int) error {
	for end := time.Now().Add(guestPatience); ; pause(ctx, time.Second) {
		n, err := g.verified(ctx)
		switch {
		case err != nil:
			return err
		case n > after+1: // the first was under way at the time of after
			return nil
		case time.Now().After(end) || ctx.Err() != nil:
			return fmt.Errorf("fio in the guest ended %d rounds in %v", n-after, guestPatience)
		}
	}
}

// verifyEnd ends it.
func (g *guest) verifyEnd(ctx context.Context) error {
	_, err := g.Shell(ctx, "touch /run/fio.stop; until [ -e /run/fio.ended ]; do sleep 0.2; done; [ ! -e /run/fio.bad ] || { cat /run/fio.bad; exit 1; }")
	return err
}
