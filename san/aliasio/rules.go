package aliasio

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is a list of nftables expressions, built from left to right. A matcher
// ends the rule for a packet that does not match.
type rule []expr.Any

func (r rule) with(more ...expr.Any) rule { return append(r[:len(r):len(r)], more...) }

// meta matches a packet's metadata.
func (r rule) meta(key expr.MetaKey, value ...byte) rule {
	return r.with(&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

// field loads n bytes of a header.
func field(base expr.PayloadBase, offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: n}
}

// is matches a field of a header.
func (r rule) is(base expr.PayloadBase, offset uint32, value ...byte) rule {
	return r.with(field(base, offset, uint32(len(value))), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

// tcp matches TCP segments that have all of the flags.
func (r rule) tcp(flags byte) rule {
	return r.meta(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP).with(
		field(expr.PayloadBaseTransportHeader, 13, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{flags}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{flags}},
	)
}

// marked matches packets whose mark has bit, or lacks it.
func (r rule) marked(bit uint32, has bool) rule {
	op := expr.CmpOpEq
	if has {
		op = expr.CmpOpNeq
	}
	return r.with(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bit), Xor: native(0)},
		&expr.Cmp{Op: op, Register: 1, Data: native(0)},
	)
}

// mark sets or clears bit in the packet's mark; the other bits stay.
func (r rule) mark(bit uint32, set bool) rule {
	change := &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(^bit), Xor: native(0)}
	if set {
		change.Xor = native(bit)
	}
	return r.with(
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, change,
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	)
}

func (r rule) drop() rule { return r.with(&expr.Verdict{Kind: expr.VerdictDrop}) }

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// place is where a packet of some kind has the address that is judged.
type place struct {
	kind   rule   // matches the kind
	offset uint32 // in the network header
	index  int    // of the set: IPv4, IPv6
}

// in matches an address that is in a set, or is not.
func (p place) in(sets [2]*nftables.Set, not bool) rule {
	set, length := sets[p.index], [2]uint32{4, 16}[p.index]
	return p.kind.with(
		field(expr.PayloadBaseNetworkHeader, p.offset, length),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: not},
	)
}

// of matches an alias.
func (p place) of(s *side) rule { return p.in(s.aliases, false) }

// ungranted matches an alias without a grant.
func (p place) ungranted(s *side) rule {
	return p.of(s).with(place{offset: p.offset, index: p.index}.in(s.granted, true)...)
}

// places says where packets of a family, that come in or go out, have it.
func places(family nftables.TableFamily, incoming bool) []place {
	protocol := func(etherType uint16) rule {
		return rule{}.meta(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, etherType)...)
	}
	switch family {
	case nftables.TableFamilyINet:
		at4, at6 := uint32(12), uint32(8) // the source
		if incoming {
			at4, at6 = 16, 24
		}
		return []place{
			{rule{}.meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4), at4, 0},
			{rule{}.meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6), at6, 1},
		}
	case nftables.TableFamilyARP:
		return []place{{rule{}, 14, 0}} // the sender's IP
	default: // netdev
		return []place{
			{protocol(unix.ETH_P_ARP), 14, 0},
			// A neighbor advertisement by its target. The kernel's own have the target
			// as their source too, so that the family inet stops them.
			{protocol(unix.ETH_P_IPV6).
				is(expr.PayloadBaseNetworkHeader, 6, unix.IPPROTO_ICMPV6).
				is(expr.PayloadBaseNetworkHeader, 40, 136), 48, 1},
		}
	}
}
