package aliasio

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// netlinkMax bounds how long a netlink call may take: no answer is an error.
const netlinkMax = time.Second

// side is the gate in one family of tables.
type side struct {
	gate             *nftables.Table
	aliases, granted [2]*nftables.Set // IPv4, IPv6
	hooks            []hook           // of the chains that every alias needs
	perDevice        bool             // chains are per interface
	onlyIPv4         bool
}

// hook is where a chain stands.
type hook struct {
	name     string
	num      *nftables.ChainHook
	incoming bool
	device   string
}

// gate is all tables of a Holder. Holder.mu guards it.
type gate struct {
	conn      *nftables.Conn
	sock      *mdl.Conn     // under conn
	namespace int           // of conn
	patience  time.Duration // netlinkMax
	pulse     int           // the socket that owns the tables that go with this process
	sides     []*side
	markGate  uint32
	markClean uint32
	// What the tables hold, to make them anew: the aliases, and how many of them
	// each interface has.
	aliases map[netip.Addr]bool
	devices map[string]int
}

// indexOf says which of two sets an address belongs to.
func indexOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// newSide describes the tables of one family.
func newSide(family nftables.TableFamily, name string) *side {
	s := &side{gate: &nftables.Table{Name: name + "_gate", Family: family}}
	types := [2]nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr}
	for i, suffix := range [2]string{"4", "6"} {
		// With IDs of their own: the library counts them in a variable that all share.
		id := uint32(2 * i)
		s.aliases[i] = &nftables.Set{Table: s.gate, ID: id + 1, Name: "alias" + suffix, KeyType: types[i]}
		s.granted[i] = &nftables.Set{Table: s.gate, ID: id + 2, Name: "granted" + suffix, KeyType: types[i], HasTimeout: true}
	}
	switch family {
	case nftables.TableFamilyINet:
		s.hooks = []hook{
			{name: "in", num: nftables.ChainHookInput, incoming: true},
			{name: "out", num: nftables.ChainHookOutput},
		}
	case nftables.TableFamilyARP:
		// NF_ARP_OUT is 1, a number that other families have for other hooks.
		s.hooks, s.onlyIPv4 = []hook{{name: "out", num: nftables.ChainHookRef(1)}}, true
	default:
		s.perDevice = true
	}
	return s
}

// dialNFT opens an nftables connection, and tells the socket under it.
func dialNFT(namespace int) (conn *nftables.Conn, sock *mdl.Conn, err error) {
	conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(namespace),
		nftables.WithSockOptions(func(c *mdl.Conn) error { sock = c; return nil }))
	return conn, sock, explain(err, "open nftables")
}

// openGate makes this process the owner of the gate, and makes the gate anew.
// It returns the aliases that a process before this one left behind; they stay
// shut until forget.
func openGate(o Options) (*gate, []netip.Addr, error) {
	conn, sock, err := dialNFT(o.Namespace)
	if err != nil {
		return nil, nil, err
	}
	g := &gate{
		conn: conn, sock: sock, namespace: o.Namespace, patience: netlinkMax, pulse: -1, markGate: o.MarkGate, markClean: o.MarkClean,
		aliases: map[netip.Addr]bool{}, devices: map[string]int{},
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP, nftables.TableFamilyNetdev} {
		g.sides = append(g.sides, newSide(family, o.Table))
	}
	// The pulse first: who else has it is alive, and its gate is not ours to touch.
	if g.pulse, err = g.openPulse(o); err == nil {
		err = g.readAliases()
	}
	left := slices.SortedFunc(maps.Keys(g.aliases), netip.Addr.Compare)
	if err == nil {
		if !g.hasEgress() {
			g.sides = g.sides[:2]
		}
		err = g.build()
	}
	if err != nil {
		return nil, nil, errors.Join(err, g.disconnect())
	}
	return g, left, nil
}

// readAliases reads what a process before this one had in its gate.
func (g *gate) readAliases() error {
	tables, err := g.tables()
	if err != nil {
		return err
	}
	for _, s := range g.sides {
		if !s.in(tables) {
			continue
		}
		found, _ := addresses(g.conn, s.aliases)
		maps.Copy(g.aliases, found) // half of a table is replaced, and the others have the rest
	}
	return nil
}

// addresses reads the addresses in sets. With an error, they are those of the sets that could
// be read.
func addresses(conn *nftables.Conn, sets [2]*nftables.Set) (found map[netip.Addr]bool, failed error) {
	found = map[netip.Addr]bool{}
	for _, set := range sets {
		elements, err := conn.GetSetElements(set)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("read the set %s of %s: %w", set.Name, set.Table.Name, err))
			continue
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				found[a] = true
			}
		}
	}
	return found, failed
}

// in tells whether the side's table is there.
func (s *side) in(tables []*nftables.Table) bool {
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool {
		return t.Name == s.gate.Name && t.Family == s.gate.Family
	})
}

// build makes all tables, with the aliases known and no grants. Each takes the
// place of one that is there in one step: there is no moment without a gate.
func (g *gate) build() error {
	tables, err := g.tables()
	if err != nil {
		return err
	}
	for _, s := range g.sides {
		if s.in(tables) {
			g.conn.DelTable(s.gate)
		}
		g.conn.AddTable(s.gate)
		for i := range s.aliases {
			if i == 1 && s.onlyIPv4 {
				continue
			}
			if err := errors.Join(g.conn.AddSet(s.aliases[i], nil), g.conn.AddSet(s.granted[i], nil)); err != nil {
				return fmt.Errorf("describe the sets of %s: %w", s.gate.Name, err)
			}
		}
		for a := range g.aliases {
			if err := g.addAlias(s, a); err != nil {
				return err
			}
		}
		hooks := s.hooks
		if s.perDevice {
			for device := range g.devices {
				hooks = append(hooks, egress(device))
			}
		}
		for _, h := range hooks {
			g.addChains(s, h)
		}
		if err := g.flush(); err != nil {
			return explain(err, "make table "+s.gate.Name)
		}
	}
	return nil
}

// addChains adds what a hook needs. What belongs to an alias is marked, the
// pulse takes the mark away, and who still has it is dropped: no process lives
// here. The rules of a connection's end are for clients: see the package doc.
func (g *gate) addChains(s *side, h hook) {
	var mark, judge []rule
	for _, p := range places(s.gate.Family, h.incoming) {
		judge = append(judge, p.ungranted(s).drop())
		if s.perDevice {
			continue // only a living process sends here
		}
		mark = append(mark, p.of(s).mark(g.markGate, true))
		judge = append(judge, p.of(s).marked(g.markGate, true).drop())
		if s.gate.Family == nftables.TableFamilyINet && !h.incoming {
			judge = append(judge,
				p.of(s).tcp(tcpFIN).marked(g.markClean, false).drop(),
				p.of(s).tcp(tcpRST|tcpACK).marked(g.markClean, false).drop())
		}
	}
	if len(mark) > 0 {
		addChain(g.conn, s.gate, h, "_mark", beforePulse, mark)
	}
	addChain(g.conn, s.gate, h, "_judge", afterPulse, judge)
}

// Priorities of the chains, in the order in which a packet passes.
const (
	beforePulse nftables.ChainPriority = iota - 30
	atPulse
	afterPulse
)

// addChain adds a chain with rules, into the batch.
func addChain(conn *nftables.Conn, table *nftables.Table, h hook, suffix string, priority nftables.ChainPriority, rules []rule) {
	chain := conn.AddChain(&nftables.Chain{
		Name: h.name + suffix, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: h.num, Priority: &priority, Device: h.device,
	})
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
	}
}

// Flags of a TCP header. RFC 9293, 3.1.
const (
	tcpFIN = 0x01
	tcpRST = 0x04
	tcpACK = 0x10
)

// egress is the hook that an interface's frames leave by.
func egress(device string) hook {
	return hook{name: "egress_" + device, num: nftables.ChainHookEgress, device: device}
}

// hasEgress tells whether the kernel has that hook. What it tries becomes part
// of a table that is made anew next.
func (g *gate) hasEgress() bool {
	table := g.sides[2].gate
	g.conn.AddTable(table)
	addChain(g.conn, table, egress("lo"), "_try", 0, nil)
	return g.flush() == nil
}

// addAlias puts an address into a side's set, into the batch.
func (g *gate) addAlias(s *side, a netip.Addr) error {
	if s.onlyIPv4 && !a.Is4() {
		return nil
	}
	err := g.conn.SetAddElements(s.aliases[indexOf(a)], []nftables.SetElement{{Key: a.AsSlice()}})
	return explain(err, "describe "+a.String())
}

// flush sends the batch: all of it takes effect, or nothing. When it was given up, it
// may take effect still.
func (g *gate) flush() error { return g.settle(flush(g.conn, g.sock, g.patience)) }

func flush(conn *nftables.Conn, sock *mdl.Conn, patience time.Duration) error {
	if err := sock.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return conn.Flush()
}

// tables lists all tables that there are.
func (g *gate) tables() ([]*nftables.Table, error) {
	if err := g.sock.SetDeadline(time.Now().Add(g.patience)); err != nil {
		return nil, err
	}
	list, err := g.conn.ListTables()
	return list, explain(g.settle(err), "list the nftables tables")
}

// settle leaves a connection on which a call was given up: the answer would come all
// the same, and be taken for that to the next call. What the kernel has refused was
// answered.
func (g *gate) settle(err error) error {
	var refused unix.Errno
	if err == nil || errors.As(err, &refused) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	conn, sock, dialErr := dialNFT(g.namespace)
	if dialErr != nil {
		return errors.Join(err, dialErr)
	}
	err = errors.Join(err, g.conn.CloseLasting())
	g.conn, g.sock = conn, sock
	return err
}

// close removes the tables. The pulse's go with their socket.
func (g *gate) close() error {
	var errs []error
	for _, s := range g.sides {
		g.conn.DelTable(s.gate)
		if err := g.flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return explain(errors.Join(append(errs, g.disconnect())...), "remove the gate")
}

// disconnect leaves the tables: no alias is granted any more.
func (g *gate) disconnect() error {
	err := g.conn.CloseLasting()
	if g.pulse >= 0 {
		err = errors.Join(err, unix.Close(g.pulse))
	}
	return err
}

// explain gives a failure of the kernel its kind, and says what to do.
func explain(err error, doing string) error {
	switch {
	case err == nil:
		return nil
	case fault.KindOf(err) != fault.Internal:
		return err
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.New(fault.Denied, "%s: aliases need CAP_NET_ADMIN and CAP_NET_RAW: run as root (%w)", doing, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fault.New(fault.Failed, "%s: this kernel lacks nf_tables: load the module or install it (%w)", doing, err)
	case errors.Is(err, unix.ENODEV):
		return fault.New(fault.NotFound, "%s: the interface is gone (%w)", doing, err)
	}
	return fault.Wrap(fault.Failed, err, doing)
}
