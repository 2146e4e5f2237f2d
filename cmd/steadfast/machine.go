package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"steadfast/compute/image"
	"steadfast/compute/usernet"
	"steadfast/compute/vmm"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
	"steadfast/node"
)

// machineCommand is "steadfast machine".
func (a *app) machineCommand() *cobra.Command {
	return group("machine", "Run a machine on this host, record it, and replay it",
		a.machineRun(), a.machineRecord(), a.machineReplay(),
		a.machineList(), a.machineShow(), a.machineConsole(), a.machineStop(), a.machineISATest())
}

// vmmCommand is the process that a machine runs in.
func (a *app) vmmCommand() *cobra.Command {
	return &cobra.Command{
		Use: vmm.Command, Short: "Run one machine, as its parent says", Hidden: true,
		Example: "  steadfast vmm", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			node.DropPriority()
			return vmm.Run(a.errs)
		},
	}
}

// socketsDir is where machines that run here are found (XDG Base Directory Specification).
func (a *app) socketsDir() (string, error) {
	base := a.getenv("XDG_RUNTIME_DIR")
	switch {
	case base != "":
	case os.Geteuid() == 0:
		base = "/run"
	default:
		return "", fault.New(fault.Invalid, "no XDG_RUNTIME_DIR to find machines in; set it to a folder that is yours alone")
	}
	return filepath.Join(base, "steadfast", "machines"), nil
}

// machineNames lists names for completion.
func (a *app) machineNames(ctx context.Context) (names []string) {
	dir, err := a.socketsDir()
	if err != nil {
		return nil
	}
	all, _ := standalone.List(ctx, dir) // who does not answer is not completed
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names
}

// machineFlags say what a machine is made of.
type machineFlags struct {
	name, image, store string
	kernel, initrd     string
	disks, nets        []string
	memory             sizeFlag
	append             string
	console, noRestart bool
	consoleLog         string
	stopTimeout        time.Duration
	hashEvery          string
	recordTo           string
}

const machineExample = `  steadfast machine run --image vm1 --net user,forward=127.0.0.1:8080:80 --console
  steadfast machine run --kernel Image --initrd initrd.gz --disk root.raw --append "console=ttyS0 root=/dev/vda"
  steadfast machine run --image vm1 --name vm1 --console-log vm1.log`

func (a *app) machineRun() *cobra.Command {
	f := &machineFlags{memory: 512 << 20}
	c := &cobra.Command{
		Use: "run", Short: "Run a machine until it ends", Args: exactly(0), Example: machineExample,
		Long: `Run a machine from files, without a node and without root, until it ends.

Its processor is RV64GC. Disks are raw files; --image takes kernel, initrd, disk and
kernel command line of an image. A network card of --net user is on a network of its
own, with DHCP (the guest is 10.0.2.15, the gateway 10.0.2.2) and DNS; it reaches what this
host reaches, but no loopback address. forward=ADDRESS:PORT:GUESTPORT lets connections in.

With --console this terminal is the guest's console.
` + standalone.EscapeHelp + `

Ctrl-C (without --console) and SIGTERM press the power button, and end the machine
by force after --stop-timeout, or at once the second time.

Exit status: 0 when the guest has powered off, or has restarted under --no-restart; 82
when its processor is wedged, 85 when it was ended by force, 70 when its process died.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runMachine(cmd.Context(), f) },
	}
	a.addMachineFlags(c, f)
	c.Flags().BoolVar(&f.noRestart, "no-restart", false, "end where the guest would restart")
	return c
}

func (a *app) machineRecord() *cobra.Command {
	f := &machineFlags{memory: 512 << 20}
	c := &cobra.Command{
		Use: "record --to DIR", Short: "Run a machine and record all that it is not a function of", Args: exactly(0),
		Example: "  steadfast machine record --to ./rec --image vm1 --console",
		Long: `Run a machine as "run" does, and record it in a folder: the machine as it was before
its first instruction (state), every input with the count of instructions at which it
came (log), and what the guest boots from (kernel, initrd). "steadfast machine replay"
has it live again, bit for bit, without disks and network.

A recording goes on where the guest restarts, unless with --no-restart. The log has
what the guest read from disks and network: keep it as you keep those.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.recordTo == "" {
				return fault.New(fault.Invalid, "say where to: --to DIR")
			}
			return a.runMachine(cmd.Context(), f)
		},
	}
	a.addMachineFlags(c, f)
	c.Flags().StringVar(&f.recordTo, "to", "", "folder of the recording, which must not have one yet")
	c.Flags().StringVar(&f.hashEvery, "hash-every", "100M", "instructions between two digests that a replay compares; 0: none")
	return c
}

func (a *app) addMachineFlags(c *cobra.Command, f *machineFlags) {
	c.Flags().StringVar(&f.image, "image", "", "the image to boot (see \"steadfast image\")")
	c.Flags().StringVar(&f.store, "store", "", "folder of images (default as for \"steadfast image\")")
	c.Flags().StringVar(&f.kernel, "kernel", "", "file of the kernel to boot (a riscv64 Image)")
	c.Flags().StringVar(&f.initrd, "initrd", "", "file of its initial RAM disk")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "a raw disk's file, FILE or FILE,ro; may be repeated")
	c.Flags().StringArrayVar(&f.nets, "net", nil, "a network card, user[,forward=ADDRESS:PORT:GUESTPORT][,isolated][,mac=MAC]; may be repeated")
	c.Flags().Var(&f.memory, "memory", "the machine's memory")
	c.Flags().StringVar(&f.append, "append", "", "the kernel's command line (default: the image's, or console=ttyS0)")
	c.Flags().BoolVar(&f.console, "console", false, "make this terminal, or standard input and output, the console")
	c.Flags().StringVar(&f.consoleLog, "console-log", "", "file to append to what the guest writes on its console; at 256 MiB it becomes FILE.1, in the place of the one before, and a new one begins")
	c.Flags().StringVar(&f.name, "name", "", "a name by which \"machine list\", \"console\" and \"stop\" find it")
	c.Flags().DurationVar(&f.stopTimeout, "stop-timeout", 60*time.Second, "how long after the power button the machine is ended by force")
	a.complete(c, "image", a.imageNames)
}

// options makes of the flags what the machine is opened with.
func (a *app) machineOptions(f *machineFlags) (o standalone.Options, err error) {
	o = standalone.Options{
		Name: f.name, Kernel: f.kernel, Initrd: f.initrd, Memory: uint64(f.memory), CommandLine: f.append,
		NoRestart: f.noRestart, Record: f.recordTo,
	}
	if f.name != "" {
		if o.Sockets, err = a.socketsDir(); err != nil {
			return o, err
		}
	}
	if f.hashEvery != "" {
		if o.HashEvery, err = parseCount(f.hashEvery); err != nil {
			return o, err
		}
	}
	if f.image != "" {
		if err := a.bootImage(&o, f); err != nil {
			return o, err
		}
	}
	if o.Kernel == "" {
		return o, fault.New(fault.Invalid, "say what to boot: --image, or --kernel")
	}
	if o.CommandLine == "" {
		o.CommandLine = "console=ttyS0"
	}
	for _, text := range f.disks {
		name, ro := strings.CutSuffix(text, ",ro")
		o.Disks = append(o.Disks, standalone.Disk{File: name, ReadOnly: ro})
	}
	for i, text := range f.nets {
		n, err := parseNet(text)
		if err != nil {
			return o, err
		}
		if n.MAC == [6]byte{} {
			n.MAC = [6]byte{0x02, 0x53, 0x46, 0, 1, byte(i + 1)} // each is on a link of its own
		}
		n.User.Hostname = f.name
		o.Nets = append(o.Nets, n)
	}
	return o, nil
}

// bootImage has the machine boot an image.
func (a *app) bootImage(o *standalone.Options, f *machineFlags) error {
	if f.kernel != "" || f.initrd != "" {
		return fault.New(fault.Invalid, "either --image, or --kernel and --initrd")
	}
	dir, err := a.imageStore(f.store)
	if err != nil {
		return err
	}
	s := image.Store{Dir: dir}
	m, err := s.Get(f.image)
	if err != nil {
		return err
	}
	if dir, err = s.Path(f.image); err != nil {
		return err
	}
	o.Kernel = filepath.Join(dir, "kernel")
	if initrd := filepath.Join(dir, "initrd"); exists(initrd) {
		o.Initrd = initrd
	}
	o.Disks = append(o.Disks, standalone.Disk{File: filepath.Join(dir, m.Disk)})
	if o.CommandLine == "" {
		o.CommandLine = m.Cmdline
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// parseNet reads a --net.
func parseNet(text string) (n standalone.Net, err error) {
	words := strings.Split(text, ",")
	if words[0] != "user" {
		return n, fault.New(fault.Invalid, "--net %q: it begins with user", text)
	}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "forward":
			f, err := parseForward(value)
			if err != nil {
				return n, err
			}
			n.User.Forwards = append(n.User.Forwards, f)
		case "isolated":
			n.User.Isolated = true
		case "mac":
			mac, err := net.ParseMAC(value)
			if err != nil || len(mac) != 6 {
				return n, fault.New(fault.Invalid, "--net %q: %q is no address of a card", text, value)
			}
			n.MAC = [6]byte(mac)
		default:
			return n, fault.New(fault.Invalid, "--net %q: %q is not known; there are forward=ADDRESS:PORT:GUESTPORT, isolated and mac=MAC", text, w)
		}
	}
	return n, nil
}

// parseForward reads ADDRESS:PORT:GUESTPORT.
func parseForward(text string) (f usernet.Forward, err error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return f, fault.New(fault.Invalid, "forward=%s: it is ADDRESS:PORT:GUESTPORT, as in 127.0.0.1:8080:80", text)
	}
	_, err = netip.ParseAddrPort(text[:i])
	port, perr := strconv.ParseUint(text[i+1:], 10, 16)
	if err = errors.Join(err, perr); err != nil || port == 0 {
		return f, fault.New(fault.Invalid, "forward=%s: it is ADDRESS:PORT:GUESTPORT, as in 127.0.0.1:8080:80", text)
	}
	return usernet.Forward{Listen: text[:i], GuestPort: uint16(port)}, nil
}

// parseCount reads a count of instructions: decimal, with K, M, G or T for its thousands.
func parseCount(text string) (uint64, error) {
	digits, unit := text, uint64(1)
	for i, u := range "KMGT" {
		if d, ok := strings.CutSuffix(strings.ToUpper(text), string(u)); ok {
			digits = d
			for range i + 1 {
				unit *= 1000
			}
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > (1<<64-1)/unit {
		return 0, fault.New(fault.Invalid, "%q is no count of instructions, as 100M is", text)
	}
	return n * unit, nil
}

// runMachine runs a machine, and is its console if that is wanted.
func (a *app) runMachine(ctx context.Context, f *machineFlags) (err error) {
	o, err := a.machineOptions(f)
	if err != nil {
		return err
	}
	o.Say = a.remark
	if f.consoleLog != "" {
		log, err := standalone.OpenConsoleLog(f.consoleLog)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, log.Close()) }()
		o.Outputs = append(o.Outputs, log)
	}
	shown := &guestScreen{w: a.out}
	if f.console {
		o.Outputs = append(o.Outputs, shown)
	}
	m, err := standalone.Open(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for _, at := range m.Forwards() {
		o.Say("connections to %s are the guest's", at)
	}
	defer a.endBySignal(m, f.stopTimeout)()
	if f.console {
		restore, err := a.typeInto(m, shown, f.stopTimeout)
		if err != nil {
			return err
		}
		defer restore()
	}
	end, err := m.Run(ctx)
	if err == nil && f.recordTo != "" {
		o.Say("the guest has ended (%s); the recording is in %s", end, f.recordTo)
	}
	return err
}

// typeInto brings what is typed here to the machine.
func (a *app) typeInto(m *standalone.Machine, shown *guestScreen, grace time.Duration) (restore func(), err error) {
	if !isTerminal(a.in) {
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := a.in.Read(b)
				m.Type(b[:n])
				if err != nil {
					return // the machine goes on
				}
			}
		}()
		return func() {}, nil
	}
	restore, err = rawTerminal(a.in.(*os.File))
	if err != nil {
		return nil, err
	}
	a.note("(%s)\r\n", standalone.EscapeHelp)
	go a.watchKeys(func(p []byte) error { m.Type(p); return nil }, func(k standalone.Key, times int) bool {
		switch {
		case k == standalone.KeyPower && times > 1:
			m.Stop(0)
		case k == standalone.KeyPower:
			m.Stop(grace)
		case k == standalone.KeyDetach:
			shown.hide()
			restore()
			a.note("\nsteadfast: the machine runs on; Ctrl-C presses its power button\n")
			return false
		}
		return true
	})
	return restore, nil
}

// watchKeys reads the terminal until it ends or do says so.
func (a *app) watchKeys(guest func([]byte) error, do func(k standalone.Key, times int) (more bool)) {
	var e standalone.Escape
	b := make([]byte, 4096)
	powers := 0
	for {
		n, err := a.in.Read(b)
		for p := b[:n]; len(p) > 0; {
			text, key, rest := e.Feed(p)
			if len(text) > 0 && guest(text) != nil {
				return
			}
			p = rest
			switch key {
			case 0:
			case standalone.KeyHelp:
				a.note("\r\n(%s)\r\n", standalone.EscapeHelp)
			default:
				if key == standalone.KeyPower {
					powers++
				}
				if !do(key, powers) {
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// counted prints a count of instructions for people.
func counted(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// seconds prints nanoseconds as seconds.
func seconds(ns uint64) string { return fmt.Sprintf("%.3f s", float64(ns)/1e9) }
