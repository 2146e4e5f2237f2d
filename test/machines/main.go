// Machines hurts what machines stand on, and judges what they, and who uses them, see of it: two
// boxes, each with a storage node and a host, one with a host alone, a witness, and a client whose
// kernel's TCP ends in the guest. Some kinds have a site of their own, of two boxes and a witness. A Debian guest on a mirrored volume serves Redis, which answers
// when its file is flushed, and verifies a second disk by fio.
//
//	-kind   what is done: one kind, several with commas, "all", "ft" for those of a machine on two
//	        hosts, "box" for those of two boxes, or "ci" for what CI runs
//	-rounds how often
//	-list   only print the kinds
//	-fio    have fio verify a disk in the guest, too
//	-goals  count stalls beyond their limit as failures; they are printed anyway
//
// Of storage hurt the guest must see nothing but a pause: no error, its client's connection kept,
// nothing lost. A host hurt restarts the machine, once, with all that was acknowledged, and never
// do two of them live; a machine on two hosts goes on, on its client's connection, and what it
// says on the wire is one story, also when the box that dies is half of all there is. The boxes are network namespaces, with taps and bridges; they and a folder
// go with the process, whatever way that ends. The customer's switch and DHCP server are not hurt.
//
// It ends with "e2e: N passed, N failed, N skipped".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// run is one run of the program.
type run struct {
	bin      string
	parent   string // of the folder with all files
	logsKept string // where logs go after a failure
	cache    string // packages and built disks
	fio      bool
	goals    bool
	keepLogs bool
	rounds   int
	samples  map[string][]sample // by kind

	passed, failed, skipped int
}

func main() {
	r := &run{samples: map[string][]sample{}}
	names := flag.String("kind", "all", "kinds, with commas; all, ft, box, or ci; -list tells them")
	flag.IntVar(&r.rounds, "rounds", 1, "how often each is tried")
	list := flag.Bool("list", false, "only print the kinds")
	flag.BoolVar(&r.fio, "fio", true, "have fio verify a disk in the guest, too")
	flag.BoolVar(&r.goals, "goals", true, "count stalls beyond their limit as failures")
	flag.BoolVar(&r.keepLogs, "keep-logs", false, "keep logs also when all was good")
	flag.StringVar(&r.parent, "dir", "/var/tmp", "folder on a disk to make files in")
	flag.StringVar(&r.logsKept, "logs", "bin/machines-failed", "folder that logs go to after a failure")
	flag.StringVar(&r.cache, "cache", ".cache/machine/image", "folder of packages and built disks")
	flag.Parse()
	if *list {
		for _, k := range kinds() {
			fmt.Printf("%-19s %s\n", k.name, k.does)
		}
		return
	}
	chosen, err := choose(*names)
	if err != nil {
		fmt.Fprintln(os.Stderr, "machines:", err)
		os.Exit(2)
	}
	if os.Geteuid() == 0 && !testbed.Supervised() {
		os.Exit(testbed.Supervise(r.parent, folderPrefix))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = r.main(ctx, chosen)
	stop()
	if err != nil {
		fmt.Println("FAIL machines:", err)
		r.failed++
	}
	fmt.Printf("e2e: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}

// choose finds kinds by name, in the order in which they are listed. Those of a machine on two
// hosts of three end with a cold start.
func choose(names string) (chosen []kind, err error) {
	all := kinds()
	switch names {
	case "all":
		return all, nil
	case "ft":
		return ftKinds(), nil
	case "box":
		return boxKinds(), nil
	case "ci":
		return slices.DeleteFunc(all, func(k kind) bool { return !k.ci }), nil
	}
	asked := strings.Split(names, ",")
	for _, name := range asked {
		i := slices.IndexFunc(all, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no kind %q; -list tells them", name)
		}
		if all[i].ft && all[i].form == threeHosts {
			asked = append(asked, coldName)
		}
	}
	return slices.DeleteFunc(all, func(k kind) bool { return !slices.Contains(asked, k.name) }), nil
}

// missing tells what this machine lacks.
func missing() string {
	if os.Geteuid() != 0 {
		return "network namespaces, bridges and taps need root"
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "this machine has no taps: " + err.Error()
	}
	return testbed.MissingForImages()
}

// image is the guest: the small one that guestlife builds, too, or one with fio.
func (r *run) image() testbed.Image {
	if r.fio {
		return testbed.Image{Name: "machines", Profile: "minimal", Size: "1G", Packages: []string{"redis-server", "redis-tools", "fio"}}
	}
	return testbed.Image{Name: "machines", Profile: "minimal", Size: "512M", Packages: []string{"redis-server", "redis-tools"}}
}

// main runs the chosen kinds, those of one form of a site after those of the other.
func (r *run) main(ctx context.Context, chosen []kind) error {
	if why := missing(); why != "" {
		r.skip("machines", why)
		return nil
	}
	bin, err := testbed.Binary()
	if err != nil {
		return err
	}
	for _, f := range []form{threeHosts, twoBoxes} {
		list := slices.DeleteFunc(slices.Clone(chosen), func(k kind) bool { return k.form != f })
		if len(list) > 0 && ctx.Err() == nil {
			err = errors.Join(err, r.site(ctx, bin, f, list))
		}
	}
	r.summary(os.Stdout, chosen)
	return err
}

// site makes a world of a form, and runs kinds in it.
func (r *run) site(ctx context.Context, bin string, f form, chosen []kind) (err error) {
	w, err := newWorld(r.parent, f)
	if err != nil {
		return err
	}
	failed := r.failed
	defer func() {
		if r.failed > failed || err != nil || r.keepLogs {
			r.logs(w)
		}
		err = errors.Join(err, w.Close())
	}()
	// Somebody may build anew while this runs.
	if r.bin, err = pin(bin, w); err != nil {
		return err
	}
	began := time.Now()
	store := w.path("images")
	_, err = r.image().Build(ctx, r.bin, store, r.cache, func(line string) { fmt.Println("note " + line) })
	if errors.Is(err, testbed.ErrNoArchive) {
		r.skip("machines", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Printf("note the image is there after %.1f s\n", time.Since(began).Seconds())
	return r.hurt(ctx, w, store, chosen)
}

// pin makes a copy of the program in the world's folder.
func pin(bin string, w *world) (string, error) {
	text, err := os.ReadFile(bin)
	if err != nil {
		return "", err
	}
	pinned := w.path("steadfast")
	return pinned, os.WriteFile(pinned, text, 0o755)
}

// hurt makes the site and tries the kinds on it. A kind that fails does not keep the next from
// being tried, unless the site cannot be put right.
func (r *run) hurt(ctx context.Context, w *world, store string, chosen []kind) (err error) {
	t, err := newTrial(ctx, r, w)
	defer func() {
		if t != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err != nil {
		return err
	}
	if err := t.begin(ctx, store); err != nil {
		t.tail()
		return err
	}
	for round := range r.rounds {
		for _, k := range chosen {
			if k.once && round < r.rounds-1 {
				continue
			}
			if err := r.one(ctx, t, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// one tries a kind, counts it and says how it went. An error means that no further one makes
// sense.
func (r *run) one(ctx context.Context, t *trial, k kind) error {
	if k.fio && !r.fio {
		r.skip(k.name, "it needs fio in the guest (-fio)")
		return nil
	}
	began := time.Now()
	said, err := t.try(ctx, k)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.failed++
		fmt.Printf("FAIL %s: %v (%.0f s)\n", k.name, err, time.Since(began).Seconds())
		if slow := new(tooLong); errors.As(err, &slow) {
			return nil // all is well
		}
		t.tail()
		return t.repair(ctx)
	}
	r.passed++
	fmt.Printf("ok   %s  %s (%.0f s)\n", k.name, said, time.Since(began).Seconds())
	return nil
}

// tooLong is the error of a kind that took longer than is promised, and was good.
type tooLong struct{ said string }

// Error implements error.
func (e *tooLong) Error() string { return "too long: " + e.said }

// skip counts what this machine cannot show, and says why.
func (r *run) skip(name, why string) {
	r.skipped++
	fmt.Printf("SKIP %s: %s\n", name, why)
}

// logs keeps the logs of a world that is about to go.
func (r *run) logs(w *world) {
	to := filepath.Join(r.logsKept, w.form.String())
	err := errors.Join(os.RemoveAll(to), os.MkdirAll(to, 0o755))
	found, _ := filepath.Glob(w.path("*.log"))
	for _, log := range found {
		if out, e := exec.Command("cp", log, to).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("%w: %s", e, out))
		}
	}
	if err != nil {
		fmt.Println("     logs:", err)
		return
	}
	fmt.Println("     logs are in " + to)
}
