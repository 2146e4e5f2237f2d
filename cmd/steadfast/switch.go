package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"steadfast/compute/netswitch"
	"steadfast/compute/usernet"
	"steadfast/fault"
	"steadfast/internal/logline"
	"steadfast/node/config"
)

// switchFlags are those of "switch".
type switchFlags struct {
	listen, subnet, log          string
	exposed, noGateway, isolated bool
	mtu                          int
	forwards, reservations       []string
}

// switchCommand is "steadfast switch".
func (a *app) switchCommand() *cobra.Command {
	f := &switchFlags{}
	var socket string
	c := &cobra.Command{
		Use: "switch", Short: "Stand in for your network's switch and gateway, without root", Args: noSuchCommand,
		Long: `Forward frames between the machines that hosts attach to a socket, until SIGTERM or
SIGINT, with a gateway behind it: DHCP, DNS, a way out, and a way in where --forward says so.

It stands for what you have already, a switch and a router, where the hosts have no root to use
them. It is no part of what Steadfast keeps available: when it ends, machines have no network
until it runs again.

Who can open the socket can attach, and be any station. --listen takes hosts over TCP,
without encryption or authentication: on another than a loopback address only with --exposed.`,
		Example: `  steadfast switch
  steadfast switch --forward 127.0.0.1:8080:10.0.2.20:80 --reserve 02:53:46:00:01:01=10.0.2.20`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.switchOptions(socket, f)
			if err != nil {
				return err
			}
			return a.runSwitch(cmd.Context(), o, f)
		},
	}
	// Instead of the socket of a node, which this has nothing to do with.
	c.PersistentFlags().StringVar(&socket, "socket", "", "the switch's socket (default $XDG_RUNTIME_DIR/steadfast/switch, or /run/steadfast/switch as root)")
	c.Flags().StringVar(&f.listen, "listen", "", "also take hosts over TCP at this address, as 127.0.0.1:4789")
	c.Flags().BoolVar(&f.exposed, "exposed", false, "let --listen be an address that others reach: they are on the machines' network then")
	c.Flags().StringVar(&f.subnet, "subnet", "10.0.2.0/24", "the machines' network; its second address is the gateway")
	c.Flags().StringArrayVar(&f.forwards, "forward", nil, "ADDRESS:PORT:MACHINE:PORT, connections to carry to a machine; may be repeated")
	c.Flags().StringArrayVar(&f.reservations, "reserve", nil, "MAC=ADDRESS, an address to keep for a machine; may be repeated")
	c.Flags().BoolVar(&f.isolated, "isolated", false, "let machines reach nothing outside; forwards work")
	c.Flags().BoolVar(&f.noGateway, "no-gateway", false, "no DHCP, no way out, no way in: only a switch")
	c.Flags().IntVar(&f.mtu, "mtu", 1500, "bytes of an Ethernet frame after its header")
	c.Flags().StringVar(&f.log, "log", "warn", "what to tell on standard error: debug, info, warn or error")
	client := func() (netswitch.Client, error) {
		path, err := a.switchSocket(socket)
		return netswitch.Client{Socket: path}, err
	}
	c.AddCommand(a.switchShow(client), group("forward", "Change what is carried to machines while the switch runs",
		a.switchForwardAdd(client), a.switchForwardRemove(client)), a.switchReserve(client), a.switchUnreserve(client), a.switchAlias())
	return c
}

// switchSocket is where the switch is found.
func (a *app) switchSocket(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	dir, err := a.socketsDir()
	if err != nil {
		return "", fault.New(fault.Invalid, "no XDG_RUNTIME_DIR to find the switch in; say --socket PATH")
	}
	return filepath.Join(filepath.Dir(dir), "switch"), nil
}

// switchOptions makes of the flags what the switch is made with.
func (a *app) switchOptions(socket string, f *switchFlags) (o netswitch.Options, err error) {
	if o.Socket, err = a.switchSocket(socket); err != nil {
		return o, err
	}
	o.Listen, o.Exposed, o.MTU, o.NoGateway = f.listen, f.exposed, f.mtu, f.noGateway
	if o.Gateway.Subnet, err = netip.ParsePrefix(f.subnet); err != nil {
		return o, fault.New(fault.Invalid, "--subnet %q is no network, as 10.0.2.0/24 is", f.subnet)
	}
	o.Gateway.Isolated = f.isolated
	for _, text := range f.forwards {
		fw, err := parseSwitchForward(text)
		if err != nil {
			return o, err
		}
		o.Gateway.Forwards = append(o.Gateway.Forwards, fw)
	}
	for _, text := range f.reservations {
		mac, address, err := parseReservation(text)
		if err != nil {
			return o, err
		}
		if o.Reserve == nil {
			o.Reserve = map[usernet.MAC]netip.Addr{}
		}
		o.Reserve[mac] = address
	}
	if f.noGateway && len(f.forwards)+len(f.reservations) > 0 {
		return o, fault.New(fault.Invalid, "--forward and --reserve are the gateway's: leave out --no-gateway")
	}
	return o, nil
}

// parseSwitchForward reads ADDRESS:PORT:MACHINE:PORT.
func parseSwitchForward(text string) (f usernet.Forward, err error) {
	words := strings.Split(text, ":")
	if n := len(words); n >= 4 {
		return newForward(strings.Join(words[:n-2], ":"), strings.Join(words[n-2:], ":"))
	}
	return f, fault.New(fault.Invalid, "--forward %q: it is ADDRESS:PORT:MACHINE:PORT, as in 127.0.0.1:8080:10.0.2.20:80", text)
}

// newForward makes a forward of two addresses with ports.
func newForward(listen, to string) (f usernet.Forward, err error) {
	guest, err := netip.ParseAddrPort(to)
	if err != nil || guest.Port() == 0 {
		return f, fault.New(fault.Invalid, "%q is no machine's address and port, as 10.0.2.20:80 is", to)
	}
	if _, err := netip.ParseAddrPort(listen); err != nil {
		return f, fault.New(fault.Invalid, "%q is no address and port of this host, as 127.0.0.1:8080 is", listen)
	}
	return usernet.Forward{Listen: listen, Guest: guest.Addr(), GuestPort: guest.Port()}, nil
}

// parseReservation reads MAC=ADDRESS.
func parseReservation(text string) (mac usernet.MAC, address netip.Addr, err error) {
	m, at, _ := strings.Cut(text, "=")
	if err = mac.UnmarshalText([]byte(m)); err == nil {
		address, err = netip.ParseAddr(at)
	}
	if err != nil {
		err = fault.New(fault.Invalid, "--reserve %q: it is MAC=ADDRESS, as in 02:53:46:00:01:01=10.0.2.20", text)
	}
	return mac, address, err
}

// runSwitch runs a switch until a signal.
func (a *app) runSwitch(ctx context.Context, o netswitch.Options, f *switchFlags) error {
	ctx, stop := a.signals(ctx)
	defer stop()
	var level config.Level
	if err := level.UnmarshalText([]byte(f.log)); err != nil {
		return err
	}
	log := logline.New(a.errs)
	defer log.Close(logPatience)
	o.Log = newLogger(log, config.Log{Level: level})
	s, err := netswitch.Open(o)
	if err != nil {
		return err
	}
	a.say("switch at %v: stands for your switch and gateway; not part of the product's availability\n", s)
	st := s.State()
	if st.Listen != "" {
		a.say("hosts attach over TCP at %s\n", st.Listen)
	}
	for _, fw := range st.Forwards {
		a.say("connections to %s are carried to %v\n", fw.Listen, netip.AddrPortFrom(fw.Guest, fw.GuestPort))
	}
	<-ctx.Done()
	return s.Close()
}

// switchClient finds the switch.
type switchClient func() (netswitch.Client, error)

func (a *app) switchShow(client switchClient) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show a switch that runs: ports, stations, leases, forwards", Args: exactly(0),
		Example: "  steadfast switch show\n  steadfast switch show --output json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			st, err := c.State(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(st)
			}
			return a.showSwitch(&st)
		},
	}
}

func (a *app) showSwitch(st *netswitch.State) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	row(w, "switch", st.Socket)
	row(w, "stands for", "your switch and gateway; not part of the product's availability")
	row(w, "process", st.PID)
	row(w, "since", st.Began.Local().Format(time.DateTime))
	row(w, "listens", st.Listen)
	row(w, "MTU", st.MTU)
	if st.Gateway.IsValid() {
		row(w, "gateway", st.Gateway, "of", st.Subnet)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	section := func(title string) {
		a.say("\n")
		w = tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		row(w, asAny(strings.Fields(title))...)
	}
	section("PORT MACHINE FROM SINCE IN OUT LOST REFUSED MOVED")
	for _, p := range st.Ports {
		row(w, p.Port, p.Machine, p.From, p.Since.Local().Format(time.DateTime), counted(p.In.Frames), counted(p.Sent), counted(p.Lost),
			counted(p.In.Runts+p.In.Oversized+p.In.BadSource), counted(p.In.MovedTo))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	section("STATION PORT HEARD ADDRESS UNTIL")
	for _, s := range stations(st) {
		row(w, s...)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(st.Forwards) == 0 {
		return nil
	}
	section("FORWARD TO")
	for _, f := range st.Forwards {
		row(w, f.Listen, netip.AddrPortFrom(f.Guest, f.GuestPort))
	}
	return w.Flush()
}

// stations joins what is known of stations by their frames and by their leases.
func stations(st *netswitch.State) (rows [][]any) {
	leases := map[usernet.MAC]usernet.Lease{}
	for _, l := range st.Leases {
		leases[l.MAC] = l
	}
	lease := func(m usernet.MAC) (address, until string) {
		l, ok := leases[m]
		if !ok {
			return "", ""
		}
		delete(leases, m)
		switch {
		case l.Reserved:
			until = "reserved"
		default:
			until = l.Until.Local().Format(time.DateTime)
		}
		return l.Address.String(), until
	}
	for _, s := range st.Stations {
		address, until := lease(s.MAC)
		rows = append(rows, []any{s.MAC, s.Port, (time.Duration(s.AgeSeconds) * time.Second).String() + " ago", address, until})
	}
	for _, l := range slices.Clone(st.Leases) {
		if _, silent := leases[l.MAC]; silent {
			address, until := lease(l.MAC)
			rows = append(rows, []any{l.MAC, "", "", address, until})
		}
	}
	return rows
}

func (a *app) switchForwardAdd(client switchClient) *cobra.Command {
	return &cobra.Command{
		Use: "add ADDRESS:PORT MACHINE:PORT", Short: "Carry connections to a machine", Args: exactly(2),
		Long: `Carry TCP connections to an address of this host on to a machine, by its address on the
switch; "steadfast switch reserve" has it keep that.`,
		Example: "  steadfast switch forward add 127.0.0.1:8080 10.0.2.20:80",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := newForward(args[0], args[1])
			if err != nil {
				return err
			}
			c, err := client()
			if err != nil {
				return err
			}
			listen, err := c.AddForward(cmd.Context(), f)
			if err != nil {
				return err
			}
			if a.output == "json" {
				f.Listen = listen
				return a.printJSON(f)
			}
			return a.did(nil, "connections to %s are carried to %s", listen, args[1])
		},
	}
}

func (a *app) switchForwardRemove(client switchClient) *cobra.Command {
	return &cobra.Command{
		Use: "remove ADDRESS:PORT", Short: "Carry no more connections from an address", Args: exactly(1),
		Example: "  steadfast switch forward remove 127.0.0.1:8080",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			if err := c.RemoveForward(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did(nil, "nothing more is carried from %s; connections that are open go on", args[0])
		},
	}
}

func (a *app) switchReserve(client switchClient) *cobra.Command {
	return &cobra.Command{
		Use: "reserve MAC [ADDRESS]", Short: "Keep an address for a machine", Args: between(1, 2),
		Long: `Keep an address for a machine, by the address of its network card: the one that is named, or
the one that it has or would get. A machine that has another learns of it when it renews that,
within twelve hours, or when it is started again. A switch that is started again has forgotten
it, unless --reserve says so.`,
		Example: "  steadfast switch reserve 02:53:46:00:01:01 10.0.2.20",
		RunE: func(cmd *cobra.Command, args []string) error {
			var mac usernet.MAC
			if err := mac.UnmarshalText([]byte(args[0])); err != nil {
				return err
			}
			var want netip.Addr
			if len(args) > 1 {
				var err error
				if want, err = netip.ParseAddr(args[1]); err != nil {
					return fault.New(fault.Invalid, "%q is no address, as 10.0.2.20 is", args[1])
				}
			}
			c, err := client()
			if err != nil {
				return err
			}
			got, err := c.Reserve(cmd.Context(), mac, want)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(object{{"mac", mac}, {"address", got}})
			}
			return a.did(nil, "%v is kept for %v", got, mac)
		},
	}
}

func (a *app) switchUnreserve(client switchClient) *cobra.Command {
	return &cobra.Command{
		Use: "unreserve MAC", Short: "Keep a machine's address no longer than its lease", Args: exactly(1),
		Example: "  steadfast switch unreserve 02:53:46:00:01:01",
		RunE: func(cmd *cobra.Command, args []string) error {
			var mac usernet.MAC
			if err := mac.UnmarshalText([]byte(args[0])); err != nil {
				return err
			}
			c, err := client()
			if err != nil {
				return err
			}
			if err := c.Unreserve(cmd.Context(), mac); err != nil {
				return err
			}
			return a.did(nil, "the address of %v is kept no longer than its lease", mac)
		},
	}
}
