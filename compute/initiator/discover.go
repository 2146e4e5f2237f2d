package initiator

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"

	"steadfast/fault"
	"steadfast/iscsi"
)

// Found is a target that a portal told of.
type Found struct {
	Target string
	// Addresses are host:port, with the portal group's tag.
	Addresses []FoundAddress
}

// FoundAddress is one portal of a found target.
type FoundAddress struct {
	Address string
	Group   uint16
}

// Discover asks a portal for its targets. Of cfg, Initiator, ISID, Auth, Times
// and Dial count; it takes at most eight times Times.Connect and Times.Login. RFC 7143,
// appendix C.
func Discover(ctx context.Context, portal string, cfg Config) ([]Found, error) {
	cfg.Target, cfg.Portals = "iqn.2026-11.io.steadfast:discovery", []string{portal}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 8*(cfg.Times.Connect+cfg.Times.Login))
	defer cancel()
	found, err := discover(ctx, portal, &cfg, false)
	var no *iscsi.LoginRefused
	if errors.As(err, &no) && no.Status == iscsi.LoginInitiatorError && cfg.Auth.In != nil {
		return discover(ctx, portal, &cfg, true)
	}
	return found, err
}

// discover is one attempt.
func discover(ctx context.Context, portal string, cfg *Config, md5 bool) ([]Found, error) {
	sock, err := cfg.Dial(ctx, portal)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "connect")
	}
	defer sock.Close()
	defer context.AfterFunc(ctx, func() { _ = sock.Close() })()
	l := &iscsi.Initiate{
		InitiatorName: cfg.Initiator, ISID: cfg.ISID, Discovery: true,
		Auth: cfg.Auth, Offer: cfg.offer(), Random: random, MD5Only: md5,
	}
	// No digests: a discovery session is a list of names.
	l.Offer.HeaderDigest, l.Offer.DataDigest = false, false
	if _, err := negotiate(sock, l, func() error { return nil }); err != nil {
		return nil, (&keeper{}).judge(err)
	}
	text, err := sendTargets(sock, l.StatSN+1)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "discovery")
	}
	pairs, err := iscsi.ParseText(text)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "discovery")
	}
	var found []Found
	for _, p := range pairs {
		switch {
		case p.Key == "TargetName":
			found = append(found, Found{Target: p.Value})
		case p.Key == "TargetAddress" && len(found) > 0:
			address, tag, _ := strings.Cut(p.Value, ",")
			n, _ := strconv.ParseUint(tag, 10, 16)
			if _, _, err := net.SplitHostPort(address); err != nil {
				address = net.JoinHostPort(strings.Trim(address, "[]"), "3260")
			}
			f := &found[len(found)-1]
			f.Addresses = append(f.Addresses, FoundAddress{address, uint16(n)})
		}
	}
	return found, nil
}

// discoveryMax bounds a list of targets, in bytes.
const discoveryMax = iscsi.MaxTextLength

// sendTargets has the text exchange, which may take several rounds.
func sendTargets(sock net.Conn, statSN uint32) (text []byte, err error) {
	ask := iscsi.AppendPair(nil, "SendTargets", "All")
	transfer := iscsi.NoTag
	for cmdSN := uint32(firstCmdSN); ; cmdSN++ {
		var h iscsi.Header
		h.SetOpcode(iscsi.OpTextReq)
		h.SetFlags(iscsi.FlagFinal)
		h.SetInitiatorTag(1)
		h.SetTargetTag(transfer)
		h.SetCmdSN(cmdSN)
		h.SetExpStatSN(statSN)
		h.SetDataLength(len(ask))
		wire := append(append(h[:], ask...), zeros[:iscsi.Padding(len(ask))]...)
		if _, err := sock.Write(wire); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(sock, h[:]); err != nil {
			return nil, err
		}
		n := h.DataLength()
		if h.Opcode() != iscsi.OpTextResp || h.AHSLength() != 0 || h.StatSN() != statSN || n+len(text) > discoveryMax {
			return nil, violation("%v of %d bytes in answer to a text request", h.Opcode(), n)
		}
		data := make([]byte, n+iscsi.Padding(n))
		if _, err := io.ReadFull(sock, data); err != nil {
			return nil, err
		}
		text = append(text, data[:n]...)
		statSN++
		if h.Final() {
			return text, nil
		}
		if h.TargetTag() == iscsi.NoTag || cmdSN > 1000 {
			return nil, violation("a text response that neither ends nor goes on")
		}
		ask, transfer = nil, h.TargetTag()
	}
}
