package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A write is one that was asked for: a byte repeated over 4 KiB.
type write struct {
	place   int // in units of 4 KiB
	pattern int
}

// restarts ends the server, in both ways, amid a stream of writes, and looks
// for every one that was answered: on a volume whose write cache is off and on
// one whose cache is on, for neither may lose anything but with the power.
func (r *run) restarts() error {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		r.skip("acknowledged writes over restarts", "qemu-io is not installed")
		return nil
	}
	for _, way := range []struct {
		name string
		end  func() error
	}{{"SIGTERM", r.server.Stop}, {"kill -9", r.server.Kill}} {
		for _, volume := range []struct {
			name string
			lun  int
		}{{"write cache off", lunData}, {"write cache on", lunQcow}} {
			if err := r.restart(way.name, way.end, volume.name, volume.lun); err != nil {
				return fmt.Errorf("%s, %s: %w", way.name, volume.name, err)
			}
		}
	}
	return nil
}

// restart is one round of restarts.
func (r *run) restart(way string, end func() error, volume string, lun int) error {
	answered, endErr, err := r.interrupted(r.server.URL(0, lun), 300, end)
	if err != nil {
		return err
	}
	if endErr != nil {
		r.fail("end by "+way, "%v", endErr)
	} else {
		r.ok("end by " + way + ", " + volume)
	}
	started := time.Now()
	if err := r.server.Start(r.ctx); err != nil {
		return fmt.Errorf("start again: %w", err)
	}
	fmt.Printf("     up again after %v\n", time.Since(started).Round(time.Millisecond))
	argv := []string{"qemu-io", "-f", "raw", "-n", "-r"}
	for place, pattern := range answered {
		argv = append(argv, "-c", fmt.Sprintf("read -P %d %dk 4k", pattern, 4*place))
	}
	name := fmt.Sprintf("%d answered writes after %s, %s", len(answered), way, volume)
	r.step(name, expect{contains: "read 4096/4096", lacks: "verification failed"}, append(argv, r.server.URL(0, lun))...)
	return nil
}

// interrupted writes at random places, and after some answers ends the server
// while it goes on. It returns what each place whose last write was answered
// must hold. The writer is killed then: no flush of its own helps the server.
func (r *run) interrupted(url string, after int, end func() error) (answered map[int]int, endErr, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-io", "-f", "raw", "-n", url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	asked := make(chan write, 1) // qemu-io does one at a time: it holds no more
	go ask(ctx, in, asked)
	ended := make(chan error, 1)
	answered = map[int]int{}
	total := 0
	for scan := bufio.NewScanner(out); scan.Scan(); {
		if !strings.Contains(scan.Text(), "wrote 4096/4096") {
			continue
		}
		w := <-asked
		answered[w.place] = w.pattern
		if total++; total == after {
			go func() {
				ended <- end()
				cancel() // libiscsi would go on trying for ever
			}()
		}
	}
	if exit := cmd.Wait(); total < after {
		return nil, nil, fmt.Errorf("qemu-io wrote %d times only: %w", total, errors.Join(exit, ctx.Err()))
	}
	// The write that was under way may or may not have landed.
	select {
	case w := <-asked:
		delete(answered, w.place)
	default:
	}
	return answered, <-ended, nil
}

// ask has qemu-io write until ctx is done, telling of each write before.
func ask(ctx context.Context, in io.WriteCloser, asked chan<- write) {
	defer func() { _ = in.Close() }()
	for {
		w := write{place: rand.IntN(4096), pattern: 1 + rand.IntN(255)}
		select {
		case <-ctx.Done():
			return
		case asked <- w:
		}
		if _, err := fmt.Fprintf(in, "write -P %d %dk 4k\n", w.pattern, 4*w.place); err != nil {
			return
		}
	}
}
