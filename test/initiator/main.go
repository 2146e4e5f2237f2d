// Initiator drives targets that are not ours to fake with the initiator of
// this tree: a node, or with -peer tgt the Linux target in user space. It tries
// every operation of a disk against a model, CHAP both ways, digests,
// discovery, reservations, and kills and restarts the server under load, which
// must be a pause and nothing else.
//
// It ends with "initiator: N passed, N failed, N skipped".
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"steadfast/block"
	"steadfast/compute/initiator"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/test/testbed"
)

const (
	diskSize = 64 << 20
	diskLUN  = 1
	readLUN  = 2
	openUser = "iqn.2026-11.io.steadfast:plain"
	chapUser = "iqn.2026-11.io.steadfast:chap"
)

// run is one run and its counts.
type run struct {
	ctx    context.Context
	dir    string
	peer   string
	kills  int
	server testbed.Server
	portal string
	chap   bool // the server asks for secrets
	log    *slog.Logger

	noCompare bool // the server has no COMPARE AND WRITE

	passed, failed, skipped int
}

func main() {
	peer := flag.String("peer", "steadfast", "server to drive: steadfast or tgt")
	kills := flag.Int("kills", 5, "how often the server is killed under load")
	loud := flag.Bool("v", false, "print the initiator's log")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r := &run{ctx: ctx, peer: *peer, kills: *kills, log: slog.New(slog.DiscardHandler)}
	if *loud {
		r.log = slog.New(slog.NewTextHandler(os.Stdout, nil))
	}
	err := r.all()
	stop()
	if err != nil {
		fmt.Println("FAIL initiator:", err)
		r.failed++
	}
	fmt.Printf("initiator: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}

func (r *run) all() (err error) {
	if r.dir, err = os.MkdirTemp("", "steadfast-initiator-"); err != nil {
		return err
	}
	defer func() {
		if r.server != nil {
			err = errors.Join(err, r.server.Close())
		}
		if err != nil || r.failed > 0 {
			text, _ := os.ReadFile(filepath.Join(r.dir, "open", "server.log"))
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			fmt.Println(strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	}()
	if r.peer == "tgt" && os.Geteuid() != 0 {
		fmt.Println("SKIP all: tgt needs root for its control socket")
		r.skipped++
		return nil
	}
	for _, chap := range []bool{false, true} {
		if err := r.serve(chap); err != nil {
			return err
		}
		if chap {
			r.try("CHAP one way", func() error { return r.withDisk(r.config(), r.device) })
			r.try("CHAP both ways", func() error {
				cfg := r.config()
				cfg.Auth.Mutual = &iscsi.Credentials{Name: "them", Secret: []byte("secret-of-target")}
				return r.withDisk(cfg, r.device)
			})
			r.try("wrong secret", func() error {
				cfg := r.config()
				cfg.Auth.In = &iscsi.Credentials{Name: "us", Secret: []byte("not-the-secret-16")}
				err := r.withDisk(cfg, r.device)
				if !fault.Is(err, fault.Denied) {
					return fmt.Errorf("%w, want denied", err)
				}
				return nil
			})
			continue
		}
		r.open()
	}
	return nil
}

// skip says what the server does without.
func (r *run) skip(what string, err error) {
	fmt.Printf("SKIP %s: %s has none: %v\n", what, r.peer, err)
	r.skipped++
}

// open has the cases of a server that asks for no secret.
func (r *run) open() {
	r.try("compare and write", func() error {
		return r.withDisk(r.config(), func(d *initiator.Disk) error {
			err := r.compare(d, 0, make([]byte, 512), bytes.Repeat([]byte{1}, 512))
			if r.peer == "tgt" && fault.Is(err, fault.Invalid) {
				r.noCompare = true
				r.skip("COMPARE AND WRITE", err)
				return nil
			}
			return err
		})
	})
	r.try("device", func() error { return r.withDisk(r.config(), r.device) })
	for _, digests := range [][2]bool{{true, false}, {false, true}, {true, true}} {
		r.try(fmt.Sprintf("digests of header %v, data %v", digests[0], digests[1]), func() error {
			cfg := r.config()
			cfg.HeaderDigest, cfg.DataDigest = digests[0], digests[1]
			return r.withDisk(cfg, r.device)
		})
	}
	r.try("discovery", r.discover)
	r.try("read-only", r.readOnly)
	r.try("no such LUN", r.missing)
	r.try("reservations", r.reservations)
	r.try("same name twice", r.twice)
	for i := range r.kills {
		r.try(fmt.Sprintf("kill %d under load", i+1), r.kill)
	}
}

func (r *run) try(name string, f func() error) {
	if r.ctx.Err() != nil {
		return
	}
	began := time.Now()
	if err := f(); err != nil {
		fmt.Printf("FAIL %s: %v\n", name, err)
		r.failed++
		return
	}
	fmt.Printf("ok   %s (%v)\n", name, time.Since(began).Round(time.Millisecond))
	r.passed++
}

// serve starts the server.
func (r *run) serve(chap bool) error {
	if r.server != nil {
		if err := r.server.Close(); err != nil {
			return err
		}
		r.server = nil
	}
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return err
	}
	r.portal, r.chap = fmt.Sprintf("127.0.0.1:%d", port), chap
	name, who := "open", testbed.Initiator{Name: openUser}
	if chap {
		name = "chap"
		who = testbed.Initiator{
			Name: chapUser, User: "us", Secret: "secret-initiator",
			MutualUser: "them", MutualSecret: "secret-of-target",
		}
	}
	r.server, err = testbed.New(r.ctx, r.peer, testbed.Config{
		Dir: filepath.Join(r.dir, name), Portals: []string{r.portal}, Initiators: []testbed.Initiator{who},
		Volumes: []testbed.Volume{
			{Name: "disk", Size: diskSize, LUN: diskLUN},
			{Name: "fixed", Size: diskSize, LUN: readLUN, ReadOnly: true},
		},
	})
	return err
}

func (r *run) config() initiator.Config {
	cfg := initiator.Config{
		Initiator: openUser, ISID: iscsi.ISID{0x80, 0, 0, 0, 0, 1},
		Target: testbed.Target, LUN: diskLUN, Portals: []string{r.portal},
		Log: r.log,
	}
	if r.chap {
		cfg.Initiator = chapUser
		cfg.Auth.In = &iscsi.Credentials{Name: "us", Secret: []byte("secret-initiator")}
	}
	return cfg
}

// withDisk opens a disk, uses it and closes it.
func (r *run) withDisk(cfg initiator.Config, use func(*initiator.Disk) error) error {
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	d, err := initiator.Open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(use(d), d.Close())
}

// device compares the disk with a slice of bytes.
func (r *run) device(d *initiator.Disk) error {
	if d.Size() != diskSize {
		return fmt.Errorf("size %d", d.Size())
	}
	const area = 8 << 20
	if err := d.Zero(0, area, 0); err != nil {
		return err
	}
	model := make([]byte, area)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		n := 512 * (1 + rng.IntN(1<<rng.IntN(12)))
		off := 512 * rng.IntN((area-n)/512)
		p := make([]byte, n)
		for j := 0; j+8 <= n; j += 8 {
			binary.LittleEndian.PutUint64(p[j:], rng.Uint64())
		}
		var err error
		switch rng.IntN(8) {
		case 0, 1, 2:
			err = d.WriteAt(p, int64(off), block.Flags(i&1))
			copy(model[off:], p)
		case 3:
			err = d.Trim(int64(off), int64(n))
			clear(model[off : off+n])
		case 4:
			err = d.Zero(int64(off), int64(n), block.Flags(i&1))
			clear(model[off : off+n])
		case 5:
			if r.noCompare {
				continue
			}
			n = 512 * (1 + rng.IntN(8))
			err = r.compare(d, off, model[off:off+n], p[:min(n, len(p))])
		case 6:
			err = d.Flush()
		default:
			if err = d.ReadAt(p, int64(off)); err == nil && !bytes.Equal(p, model[off:off+n]) {
				err = fmt.Errorf("%d bytes at %d differ", n, off)
			}
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	all := make([]byte, area)
	if err := d.ReadAt(all, 0); err != nil {
		return err
	}
	if !bytes.Equal(all, model) {
		return errors.New("the disk differs from the model")
	}
	return nil
}

// compare has a COMPARE AND WRITE that matches, and one that does not.
func (r *run) compare(d *initiator.Disk, off int, place, fresh []byte) error {
	place = place[:len(fresh)]
	wrong := bytes.Clone(place)
	wrong[len(wrong)-1] ^= 1
	at, err := d.CompareAndWrite(int64(off), wrong, fresh, 0)
	if err != nil {
		return err
	}
	if at != int64(len(wrong)-1) {
		return fmt.Errorf("differs at %d", at)
	}
	at, err = d.CompareAndWrite(int64(off), place, fresh, 0)
	if err != nil || at != -1 {
		return fmt.Errorf("differs at %d, %w", at, err)
	}
	copy(place, fresh)
	return nil
}

func (r *run) discover() error {
	found, err := initiator.Discover(r.ctx, r.portal, r.config())
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.Target == testbed.Target && len(f.Addresses) > 0 && f.Addresses[0].Address == r.portal {
			return nil
		}
	}
	return fmt.Errorf("found %+v", found)
}

func (r *run) readOnly() error {
	cfg := r.config()
	cfg.LUN = readLUN
	return r.withDisk(cfg, func(d *initiator.Disk) error {
		if err := d.WriteAt(make([]byte, 512), 0, 0); !fault.Is(err, fault.ReadOnly) {
			return fmt.Errorf("%w, want read-only", err)
		}
		return d.ReadAt(make([]byte, 512), 0)
	})
}

func (r *run) missing() error {
	cfg := r.config()
	cfg.LUN = 77
	ctx, cancel := context.WithTimeout(r.ctx, time.Second)
	defer cancel()
	d, err := initiator.Open(ctx, cfg)
	if err == nil {
		return errors.Join(errors.New("opened what is not there"), d.Close())
	}
	if !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("%w, want not-found", err)
	}
	return nil
}

// reservations has two hosts fight for a disk.
func (r *run) reservations() error {
	return r.withDisk(r.config(), func(a *initiator.Disk) error {
		cfg := r.config()
		cfg.ISID[5] = 9
		return r.withDisk(cfg, func(b *initiator.Disk) error {
			kind := initiator.WriteExclusiveRegistrants
			ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
			defer cancel()
			p := make([]byte, 512)
			steps := []struct {
				what string
				kind fault.Kind
				do   func() error
			}{
				{"a registers", 0, func() error { return a.Register(ctx, 0xa) }},
				{"a reserves", 0, func() error { return a.Reserve(ctx, kind) }},
				{"a writes", 0, func() error { return a.WriteAt(p, 0, 0) }},
				{"b writes", fault.Fenced, func() error { return b.WriteAt(p, 0, 0) }},
				{"b reads", 0, func() error { return b.ReadAt(p, 0) }},
				{"b registers", 0, func() error { return b.Register(ctx, 0xb) }},
				{"b preempts", 0, func() error { return b.PreemptAbort(ctx, kind, 0xa) }},
				{"a writes", fault.Fenced, func() error { return a.WriteAt(p, 0, 0) }},
				{"b writes", 0, func() error { return b.WriteAt(p, 0, 0) }},
				{"keys", 0, func() error {
					keys, err := b.ReadKeys(ctx)
					if err == nil && len(keys) == 0 {
						err = errors.New("no keys")
					}
					for _, k := range keys {
						if k != 0xb {
							err = fmt.Errorf("keys %x", keys)
						}
					}
					return err
				}},
				{"holder", 0, func() error {
					held, err := a.ReadReservation(ctx)
					if held != (initiator.Reservation{Kind: kind, Key: 0xb}) {
						err = fmt.Errorf("%+v, %w", held, err)
					}
					return err
				}},
				{"b clears", 0, func() error { return b.Clear(ctx) }},
				// It stays out until it says that it knows.
				{"a writes", fault.Fenced, func() error { return a.WriteAt(p, 0, 0) }},
				{"a has no key", 0, func() error { return a.Register(ctx, 0) }},
				{"a writes", 0, func() error { return a.WriteAt(p, 0, 0) }},
			}
			for _, s := range steps {
				err := s.do()
				if s.what == "b preempts" && r.peer == "tgt" && fault.Is(err, fault.Invalid) {
					r.skip("PREEMPT AND ABORT", err)
					return b.Clear(ctx)
				}
				if s.kind == 0 && err != nil || s.kind != 0 && !fault.Is(err, s.kind) {
					return fmt.Errorf("%s: %w", s.what, err)
				}
			}
			return nil
		})
	})
}

// twice opens the same disk by the same name: the later one ends the earlier's
// session, and both go on, in turns.
func (r *run) twice() error {
	return r.withDisk(r.config(), func(*initiator.Disk) error {
		return r.withDisk(r.config(), func(b *initiator.Disk) error {
			return b.WriteAt(make([]byte, 512), 0, 0)
		})
	})
}

// kill kills the server under load and starts it again.
func (r *run) kill() error {
	return r.withDisk(r.config(), func(d *initiator.Disk) error {
		var stop atomic.Bool
		var users sync.WaitGroup
		errs := make(chan error, 16)
		var done atomic.Int64
		for u := range 8 {
			users.Go(func() {
				p, q := make([]byte, 16<<10), make([]byte, 16<<10)
				for n := 0; !stop.Load(); n++ {
					for i := range p {
						p[i] = byte(i*3 + n*7 + u)
					}
					off := int64(u<<20 + n%16*len(p))
					err := d.WriteAt(p, off, 0)
					if err == nil {
						err = d.ReadAt(q, off)
					}
					if err == nil && !bytes.Equal(p, q) {
						err = fmt.Errorf("%d bytes at %d are not what was written", len(p), off)
					}
					if err != nil {
						errs <- err
						return
					}
					done.Add(1)
				}
			})
		}
		busy := func() error {
			from, end := done.Load(), time.Now().Add(30*time.Second)
			for done.Load() < from+64 {
				select {
				case err := <-errs:
					return err
				case <-time.After(5 * time.Millisecond):
				}
				if time.Now().After(end) {
					return fmt.Errorf("no progress: %+v", d.State())
				}
			}
			return nil
		}
		err := busy()
		if err == nil {
			err = r.server.Kill()
		}
		if err == nil {
			err = r.server.Start(r.ctx)
		}
		if err == nil {
			err = busy()
		}
		stop.Store(true)
		if err != nil {
			return errors.Join(err, d.Close())
		}
		users.Wait()
		select {
		case err = <-errs:
		default:
		}
		if s := d.State(); err == nil && (s.Losses == 0 || s.Logins < 2) {
			err = fmt.Errorf("nothing was lost: %+v", s)
		}
		return err
	})
}
