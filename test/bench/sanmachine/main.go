// Command sanmachine runs a machine as a host does, without a cluster around it: its
// first disk is a file, its second one a volume that compute/initiator has, and
// compute/diskwire serves to the machine's process.
//
//	sanmachine -kernel FILE -initrd FILE -append TEXT -memory BYTES -disk FILE -volume iscsi://HOST:PORT/TARGET/LUN -initiator IQN
//
// Standard input and output are the console.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"steadfast/compute/filedisk"
	"steadfast/compute/initiator"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmm"
	"steadfast/iscsi"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == vmm.Command {
		if err := vmm.Run(os.Stderr); err != nil {
			os.Exit(1) // vmm.Run has said why
		}
		return
	}
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "sanmachine:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	kernel := flag.String("kernel", "", "the kernel")
	initrd := flag.String("initrd", "", "the initial RAM disk")
	text := flag.String("append", "", "the kernel's command line")
	memory := flag.Uint64("memory", 512<<20, "bytes of memory")
	disk := flag.String("disk", "", "file of the first disk")
	volume := flag.String("volume", "", "URL of the second one")
	name := flag.String("initiator", "", "our iSCSI name")
	flag.Parse()
	files, err := openAll(*kernel, *initrd)
	if err != nil {
		return err
	}
	root, err := filedisk.OpenFile(*disk, false)
	if err != nil {
		return err
	}
	size, err := root.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	data, err := open(ctx, *volume, *name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	p, err := vmm.Start(ctx, vmm.Options{
		Config: machine.Config{
			Memory: *memory, CommandLine: *text, Disks: []machine.Disk{{Size: size}, {Size: data.Size()}},
			Seed: machineio.Seed(), Wall: uint64(time.Now().UnixNano()),
		},
		Kernel: files[0], Initrd: files[1], Disks: []vmm.Disk{{File: root}, {Device: data}},
	})
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(p.Console, os.Stdin) }() // until either ends
	_, _ = io.Copy(os.Stdout, p.Console)
	_, err = p.Wait()
	return errors.Join(err, p.Close())
}

// openAll opens files; they are closed with the process.
func openAll(names ...string) (files []*os.File, err error) {
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// open opens the volume.
func open(ctx context.Context, text, name string) (*initiator.Disk, error) {
	at, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	target, lun, _ := strings.Cut(strings.Trim(at.Path, "/"), "/")
	number, err := strconv.Atoi(lun)
	if err != nil {
		return nil, fmt.Errorf("%q: want iscsi://HOST:PORT/TARGET/LUN", text)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return initiator.Open(ctx, initiator.Config{
		Initiator: name, ISID: iscsi.ISID{0x80, 0, 0, 0, 0, 8}, Target: target, LUN: number, Portals: []string{at.Host},
		Log: slog.New(slog.DiscardHandler),
	})
}
