package iscsi

import (
	"fmt"
	"strconv"
	"strings"
)

// Constants of text negotiation. RFC 7143, 6.2.
const (
	valueReject        = "Reject"
	valueIrrelevant    = "Irrelevant"
	valueNotUnderstood = "NotUnderstood"
	valueNone          = "None"
)

// rule is how a key's answer comes from an offer and our own value.
type rule uint8

const (
	ruleDeclare rule = iota // no answer
	ruleAnd
	ruleOr
	ruleMin
	ruleMax
	ruleDigest // list of None and CRC32C
	ruleList   // list with a single value we take
	ruleConst  // obsolete or out of place: a constant answer
)

// keySpec is one row of the key table.
type keySpec struct {
	rule       rule
	leading    bool // session-wide: only in the login phase of the leading connection (LO, IO)
	noDiscover bool // irrelevant in a discovery session
	low, high  int  // numeric range
	text       string
	number     func(*Params) *int
	boolean    func(*Params) *bool
}

// keys is RFC 7143, 13 (and 13.25 for the obsolete ones), for the keys of the
// operational stage. Keys of the security stage and declarations that the
// login itself reads (names, SessionType) are handled by the login.
var keys = map[string]keySpec{
	"HeaderDigest":   {rule: ruleDigest, boolean: func(p *Params) *bool { return &p.HeaderDigest }},
	"DataDigest":     {rule: ruleDigest, boolean: func(p *Params) *bool { return &p.DataDigest }},
	"MaxConnections": {rule: ruleMin, leading: true, noDiscover: true, low: 1, high: 65535, number: func(p *Params) *int { return &p.MaxConnections }},
	"InitialR2T":     {rule: ruleOr, leading: true, noDiscover: true, boolean: func(p *Params) *bool { return &p.InitialR2T }},
	"ImmediateData":  {rule: ruleAnd, leading: true, noDiscover: true, boolean: func(p *Params) *bool { return &p.ImmediateData }},
	"MaxRecvDataSegmentLength": {
		rule: ruleDeclare, low: MinSegmentLength, high: MaxSegmentLength,
		number: func(p *Params) *int { return &p.MaxSendLength },
	},
	"MaxBurstLength": {
		rule: ruleMin, leading: true, noDiscover: true, low: MinSegmentLength, high: MaxSegmentLength,
		number: func(p *Params) *int { return &p.MaxBurstLength },
	},
	"FirstBurstLength": {
		rule: ruleMin, leading: true, noDiscover: true, low: MinSegmentLength, high: MaxSegmentLength,
		number: func(p *Params) *int { return &p.FirstBurstLength },
	},
	"DefaultTime2Wait":   {rule: ruleMax, leading: true, low: 0, high: 3600, number: func(p *Params) *int { return &p.DefaultTime2Wait }},
	"DefaultTime2Retain": {rule: ruleMin, leading: true, low: 0, high: 3600, number: func(p *Params) *int { return &p.DefaultTime2Retain }},
	"MaxOutstandingR2T":  {rule: ruleMin, leading: true, noDiscover: true, low: 1, high: 65535, number: func(p *Params) *int { return &p.MaxOutstandingR2T }},
	"DataPDUInOrder":     {rule: ruleOr, leading: true, noDiscover: true, boolean: func(p *Params) *bool { return &p.DataPDUInOrder }},
	"DataSequenceInOrder": {
		rule: ruleOr, leading: true, noDiscover: true,
		boolean: func(p *Params) *bool { return &p.DataSequenceInOrder },
	},
	"ErrorRecoveryLevel": {rule: ruleMin, leading: true, low: 0, high: 2, number: func(p *Params) *int { return &p.ErrorRecoveryLevel }},
	"TaskReporting":      {rule: ruleList, leading: true, noDiscover: true, text: "RFC3720"},
	// RFC 7143, 13.24, and RFC 7144, 7.1. Level 1 is RFC 7143; the SAM-4
	// features of level 2 are not here.
	"iSCSIProtocolLevel": {
		rule: ruleMin, leading: true, noDiscover: true, low: 0, high: 31,
		number: func(p *Params) *int { return &p.ProtocolLevel },
	},
	// RFC 7143, 13.25: never NotUnderstood; "No" is what old peers read best.
	"IFMarker":    {rule: ruleConst, leading: true, text: "No"},
	"OFMarker":    {rule: ruleConst, leading: true, text: "No"},
	"IFMarkInt":   {rule: ruleConst, leading: true, text: valueIrrelevant},
	"OFMarkInt":   {rule: ruleConst, leading: true, text: valueIrrelevant},
	"TargetAlias": {rule: ruleDeclare}, "InitiatorAlias": {rule: ruleDeclare},
	// Keys with a time and place of their own, which a login or a text request
	// looks at before it asks here: this is neither, and we do understand them.
	"InitiatorName": {rule: ruleConst, text: valueReject}, "TargetName": {rule: ruleConst, text: valueReject},
	"SessionType": {rule: ruleConst, text: valueReject}, "SendTargets": {rule: ruleConst, text: valueReject},
	"TargetAddress": {rule: ruleConst, text: valueReject}, "TargetPortalGroupTag": {rule: ruleConst, text: valueReject},
	"AuthMethod": {rule: ruleConst, text: valueReject}, "CHAP_A": {rule: ruleConst, text: valueReject},
	"CHAP_I": {rule: ruleConst, text: valueReject}, "CHAP_C": {rule: ruleConst, text: valueReject},
	"CHAP_N": {rule: ruleConst, text: valueReject}, "CHAP_R": {rule: ruleConst, text: valueReject},
}

// Negotiation answers the operational keys of one login, or of one text
// exchange in the full feature phase, as the responder.
type Negotiation struct {
	// Own holds our values before, and the results after. MaxRecvLength is
	// declared by Declare and never changed by an offer.
	Own Params
	// Discovery marks a discovery session.
	Discovery bool
	// FullFeature says that the login is over: session-wide keys are then
	// refused.
	FullFeature bool

	seen   map[string]bool // every key offered, to refuse a second offer
	agreed map[string]bool // keys whose answer was a value
}

// agree notes that key has a negotiated value.
func (n *Negotiation) agree(key string) {
	if n.agreed == nil {
		n.agreed = make(map[string]bool)
	}
	n.agreed[key] = true
}

// Answer takes one offered pair and appends our answer, if it has one, to b.
// A value that cannot be agreed on is answered with Reject and leaves the
// default standing. Answer fails when the exchange itself is broken: a key
// negotiated twice, or a declaration out of range. RFC 7143, 6.2.
func (n *Negotiation) Answer(b []byte, p Pair) (out []byte, err error) {
	spec, known := keys[p.Key]
	if !known {
		return AppendPair(b, p.Key, valueNotUnderstood), nil
	}
	if n.seen[p.Key] {
		return b, fmt.Errorf("key %s negotiated twice", p.Key)
	}
	if n.seen == nil {
		n.seen = make(map[string]bool)
	}
	n.seen[p.Key] = true
	if n.FullFeature && (spec.leading || spec.rule == ruleDigest) {
		return AppendPair(b, p.Key, valueReject), nil
	}
	if n.Discovery && spec.noDiscover {
		return AppendPair(b, p.Key, valueIrrelevant), nil
	}
	switch spec.rule {
	case ruleDeclare:
		return b, n.declared(spec, p)
	case ruleConst:
		return AppendPair(b, p.Key, spec.text), nil
	case ruleAnd, ruleOr:
		return n.boolean(b, spec, p), nil
	case ruleMin, ruleMax:
		return n.number(b, spec, p), nil
	case ruleDigest:
		return n.digest(b, spec, p), nil
	case ruleList:
		for v := range strings.SplitSeq(p.Value, ",") {
			if v == spec.text {
				return AppendPair(b, p.Key, v), nil
			}
		}
	}
	return AppendPair(b, p.Key, valueReject), nil
}

// declared takes a declaration. One that is out of range cannot be answered
// with Reject (it is no offer), so it fails the exchange.
func (n *Negotiation) declared(spec keySpec, p Pair) error {
	if spec.number == nil {
		return nil
	}
	v, ok := parseNumber(p.Value)
	if !ok || v < uint64(spec.low) || v > uint64(spec.high) {
		return fmt.Errorf("%s=%.20s is not between %d and %d", p.Key, p.Value, spec.low, spec.high)
	}
	*spec.number(&n.Own) = int(v)
	return nil
}

func (n *Negotiation) boolean(b []byte, spec keySpec, p Pair) []byte {
	own := spec.boolean(&n.Own)
	switch {
	case p.Value != "Yes" && p.Value != "No":
		return AppendPair(b, p.Key, valueReject)
	case spec.rule == ruleAnd:
		*own = *own && p.Value == "Yes"
	default:
		*own = *own || p.Value == "Yes"
	}
	n.agree(p.Key)
	if *own {
		return AppendPair(b, p.Key, "Yes")
	}
	return AppendPair(b, p.Key, "No")
}

func (n *Negotiation) number(b []byte, spec keySpec, p Pair) []byte {
	v, ok := parseNumber(p.Value)
	if !ok || v < uint64(spec.low) || v > uint64(spec.high) {
		return AppendPair(b, p.Key, valueReject)
	}
	own := spec.number(&n.Own)
	if spec.rule == ruleMin {
		*own = min(*own, int(v))
	} else {
		*own = max(*own, int(v))
	}
	if p.Key == "FirstBurstLength" && n.agreed["MaxBurstLength"] {
		// Not above MaxBurstLength (RFC 7143, 13.14), and better said than
		// only done; offered the other way round, Result sees to it.
		*own = min(*own, n.Own.MaxBurstLength)
	}
	n.agree(p.Key)
	return AppendPair(b, p.Key, strconv.Itoa(*own))
}

// digest picks the first value of the offer that we have; ours are both.
func (n *Negotiation) digest(b []byte, spec keySpec, p Pair) []byte {
	for v := range strings.SplitSeq(p.Value, ",") {
		if v == valueNone || v == "CRC32C" {
			*spec.boolean(&n.Own) = v == "CRC32C"
			n.agree(p.Key)
			return AppendPair(b, p.Key, v)
		}
	}
	return AppendPair(b, p.Key, valueReject)
}

// Result returns the outcome, with what was not negotiated at the RFC's
// default and not at what we would have offered.
func (n *Negotiation) Result() Params {
	r, d := n.Own, DefaultParams()
	for key, spec := range keys {
		if n.agreed[key] || spec.rule == ruleDeclare {
			continue
		}
		// Values we would have agreed to but which nobody offered stay at
		// the default: the peer assumes so.
		if spec.number != nil {
			*spec.number(&r) = *spec.number(&d)
		}
		if spec.boolean != nil {
			*spec.boolean(&r) = *spec.boolean(&d)
		}
	}
	// RFC 7143, 13.14: FirstBurstLength must not exceed MaxBurstLength.
	r.FirstBurstLength = min(r.FirstBurstLength, r.MaxBurstLength)
	return r
}
