package aliasio

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Session is both ends of a client's connection.
type Session struct {
	Alias  netip.AddrPort
	Client netip.AddrPort
}

// Numbers of sock_diag(7) that package unix lacks.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	diagReqBytecode  = 1 // INET_DIAG_REQ_BYTECODE
	diagSourceCond   = 7 // INET_DIAG_BC_S_COND
	diagMsgLen       = 72
	diagIDLen        = 48
	stateEstablished = 1 << 1
	// All but TIME_WAIT, CLOSE and LISTEN.
	stateConnected = 0xfff &^ (1<<6 | 1<<7 | 1<<10)
)

// socket is a connection with the kernel's name for it.
type socket struct {
	Session
	family byte
	id     [diagIDLen]byte
}

// Sessions lists the established connections of an alias. The kernel compares
// the address, so that the cost is its walk over the table, and the answers.
func (h *Holder) Sessions(address netip.Addr) ([]Session, error) {
	h.mu.Lock()
	_, err := h.find(address)
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var all []Session
	err = withDiag(h.options.Namespace, func(conn *mdl.Conn) error {
		sockets, err := listSockets(conn, address, stateEstablished)
		for _, s := range sockets {
			all = append(all, s.Session)
		}
		return err
	})
	return all, err
}

// disconnect ends what connections an alias still has here. Their clients are
// with somebody else, or will be. As far as the kernel can: where it cannot,
// the shut gate keeps them from doing anything, and they time out.
func disconnect(namespace int, address netip.Addr) {
	_ = withDiag(namespace, func(conn *mdl.Conn) error {
		sockets, err := listSockets(conn, address, stateConnected)
		if err != nil {
			return err
		}
		for _, s := range sockets {
			// One that has ended meanwhile is not there to be ended.
			_, _ = conn.Execute(mdl.Message{
				Header: mdl.Header{Type: sockDestroy, Flags: mdl.Request | mdl.Acknowledge},
				Data:   diagRequest(s.family, stateConnected, s.id[:]),
			})
		}
		return nil
	})
}

// withDiag runs f with a sock_diag socket. It is opened each time: one that
// lives would have to be guarded for a thing that is rare.
func withDiag(namespace int, f func(*mdl.Conn) error) error {
	conn, err := mdl.Dial(unix.NETLINK_SOCK_DIAG, &mdl.Config{NetNS: namespace})
	if err != nil {
		return explain(err, "open sock_diag")
	}
	defer conn.Close()
	return explain(f(conn), "list connections")
}

// listSockets lists the connections of a local address in the states.
func listSockets(conn *mdl.Conn, address netip.Addr, states uint32) ([]socket, error) {
	families := []byte{unix.AF_INET6}
	if address.Is4() {
		// A socket for both families has an IPv4 client as ::ffff:a.b.c.d.
		families = append(families, unix.AF_INET)
	}
	filter, err := mdl.MarshalAttributes([]mdl.Attribute{{Type: diagReqBytecode, Data: fromAddress(address)}})
	if err != nil {
		return nil, fmt.Errorf("write the filter: %w", err)
	}
	var found []socket
	for _, family := range families {
		answers, err := conn.Execute(mdl.Message{
			Header: mdl.Header{Type: sockDiagByFamily, Flags: mdl.Request | mdl.Dump},
			Data:   append(diagRequest(family, states, nil), filter...),
		})
		if err != nil {
			return nil, err
		}
		for _, m := range answers {
			if s, ok := parseSocket(m.Data); ok && s.Alias.Addr() == address {
				found = append(found, s)
			}
		}
	}
	return found, nil
}

// diagRequest writes a struct inet_diag_req_v2.
func diagRequest(family byte, states uint32, id []byte) []byte {
	b := []byte{family, unix.IPPROTO_TCP, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, states)
	b = append(b, id...)
	for len(b) < 8+diagIDLen {
		b = append(b, 0)
	}
	return b
}

// fromAddress writes the kernel's filter program for a local address: one
// condition; when it does not hold, a jump past the end, which means no.
func fromAddress(a netip.Addr) []byte {
	family := byte(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	raw := a.AsSlice()
	length := 4 + 8 + len(raw) // struct inet_diag_bc_op, inet_diag_hostcond, address
	b := []byte{diagSourceCond, byte(length)}
	b = binary.NativeEndian.AppendUint16(b, uint16(length+4))
	b = append(b, family, byte(a.BitLen()), 0, 0)
	b = append(b, 0xff, 0xff, 0xff, 0xff) // any port
	return append(b, raw...)
}

// parseSocket reads a struct inet_diag_msg.
func parseSocket(b []byte) (socket, bool) {
	if len(b) < diagMsgLen {
		return socket{}, false
	}
	s := socket{family: b[0], id: [diagIDLen]byte(b[4:])}
	address := func(at int) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at:]))
		}
		return netip.AddrFrom16([16]byte(b[at:])).Unmap()
	}
	s.Alias = netip.AddrPortFrom(address(8), binary.BigEndian.Uint16(b[4:]))
	s.Client = netip.AddrPortFrom(address(24), binary.BigEndian.Uint16(b[6:]))
	return s, s.family == unix.AF_INET || s.family == unix.AF_INET6
}
