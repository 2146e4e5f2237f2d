package usernet

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Times and sizes of DNS.
const (
	// dnsTry is how long a resolver may take before the next is asked.
	dnsTry = 2 * time.Second
	// dnsIdle ends a guest's flow of questions.
	dnsIdle = 20 * time.Second
	// dnsBytesMax is the longest message over UDP that is carried (EDNS has at most 65535,
	// which no one uses).
	dnsBytesMax = 16 << 10
	// dnsHeader is the length of a message's header (RFC 1035, 4.1.1).
	dnsHeader = 12
	// resolvConfLines bounds what is read of resolv.conf.
	resolvConfLines = 1000
)

// resolvConf is where this host names its resolvers (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// resolvers returns whom the gateway asks.
func (n *Network) resolvers() []netip.AddrPort {
	if n.o.Resolvers != nil {
		return n.o.Resolvers
	}
	f, err := os.Open(resolvConf)
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []netip.AddrPort
	s := bufio.NewScanner(f)
	for i := 0; i < resolvConfLines && s.Scan(); i++ {
		w := strings.Fields(s.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil {
			all = append(all, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return all
}

// serveDNS answers the questions of one flow of the guest, one after the other: a guest's
// resolver that asks several things at once does so from several ports.
func (n *Network) serveDNS(guest net.Conn) {
	b := make([]byte, dnsBytesMax)
	for {
		if err := guest.SetReadDeadline(time.Now().Add(dnsIdle)); err != nil {
			return
		}
		got, err := guest.Read(b)
		if err != nil {
			return
		}
		if got < dnsHeader {
			continue
		}
		answer := n.ask(b[:got])
		if answer == nil {
			answer = servFail(b[:got])
		}
		if _, err := guest.Write(answer); err != nil {
			return
		}
	}
}

// ask puts a question to the resolvers in turn; nil if none answers.
func (n *Network) ask(question []byte) []byte {
	for _, r := range n.resolvers() {
		if answer := n.askOne(r, question); answer != nil {
			return answer
		}
		if n.ctx.Err() != nil {
			break
		}
	}
	return nil
}

func (n *Network) askOne(r netip.AddrPort, question []byte) []byte {
	ctx, cancel := context.WithTimeout(n.ctx, dnsTry)
	defer cancel()
	c, err := n.o.Dial(ctx, "udp", r.String())
	if err != nil {
		return nil
	}
	if !n.keep(c) {
		return nil
	}
	defer n.drop(c)
	if c.SetDeadline(time.Now().Add(dnsTry)) != nil {
		return nil
	}
	if _, err := c.Write(question); err != nil {
		return nil
	}
	b := make([]byte, dnsBytesMax)
	for {
		got, err := c.Read(b)
		if err != nil {
			return nil
		}
		// Another question's answer, or no answer: bit 15 of the flags says which.
		if got >= dnsHeader && b[0] == question[0] && b[1] == question[1] && b[2]&0x80 != 0 {
			return b[:got]
		}
	}
}

// servFail is the answer that there is none (RFC 1035, 4.1.1: RCODE 2), with the question's
// header alone.
func servFail(question []byte) []byte {
	a := make([]byte, dnsHeader)
	copy(a, question[:4])
	a[2] |= 0x80
	a[3] = a[3]&0x70 | 0x80 | 2
	return a
}
