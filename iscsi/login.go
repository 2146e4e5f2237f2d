package iscsi

import (
	"fmt"
	"strconv"
	"strings"
)

// Identity is who a login says it is and where it wants to go. Names are
// normalised. TargetName is empty in a discovery session without one.
type Identity struct {
	InitiatorName  string
	InitiatorAlias string
	TargetName     string
	Discovery      bool
	ISID           ISID
	TSIH           uint16
	CID            uint16
}

// LoginPolicy decides for the target; its methods do no I/O that blocks for
// long, as an initiator waits for the answer.
type LoginPolicy interface {
	// Admit is asked once, as soon as the identity is known, and before any
	// proof: it says what the initiator must prove, or refuses with a status
	// other than LoginSuccess.
	Admit(Identity) (Auth, LoginStatus)
	// Enter is asked once, after authentication and negotiation, before the
	// last response: it returns the new session's TSIH, or a refusal.
	Enter(Identity, Params) (tsih uint16, status LoginStatus)
	// Random fills p with unpredictable bytes.
	Random(p []byte)
}

// maxLoginRounds bounds the requests of one login: the longest sensible login
// has under ten.
const maxLoginRounds = 32

// Login is the target's side of one connection's login phase. Feed it each
// request with Step until it is Done or Failed. RFC 7143, 6.3 and 11.12.
type Login struct {
	// PortalGroup is the tag of the portal group the connection came in by.
	PortalGroup uint16
	// Alias is the target's alias, declared when not empty.
	Alias string
	// Own are the values the target would agree to.
	Own Params

	// Done is set when the connection is in the full feature phase, Failed
	// when a refusal was answered and the connection must be closed.
	Done, Failed bool
	// Identity, Params, Status and Why are the outcome. Why explains a
	// failure, for the log; it holds no secret, but words of the initiator's.
	Identity Identity
	Params   Params
	Status   LoginStatus
	Why      error

	policy LoginPolicy
	neg    Negotiation
	auth   Auth
	chap   chap
	stage  Stage
	step   authStep

	rounds     int
	identified bool
	declared   bool   // our declarations were sent
	began      bool   // a request was seen: later ones must fit the first
	ended      bool   // the final response was decided
	pending    []byte // text of requests with the C bit
	reply      []byte // text of our answer not yet sent
	tag        uint32
	tsih       uint16
}

// authStep is where the security negotiation stands.
type authStep uint8

const (
	authNone      authStep = iota // no AuthMethod yet
	authMethod                    // CHAP chosen, CHAP_A expected
	authChallenge                 // challenge sent, proof expected
	authProven                    // nothing more to prove
)

// NewLogin returns a login that policy decides.
func NewLogin(policy LoginPolicy, own Params, portalGroup uint16) *Login {
	return &Login{policy: policy, Own: own, PortalGroup: portalGroup}
}

// loginError carries a status through the steps below.
type loginError struct {
	status LoginStatus
	err    error
}

func (e *loginError) Error() string { return e.err.Error() }

func refuse(s LoginStatus, format string, args ...any) *loginError {
	return &loginError{s, fmt.Errorf(format, args...)}
}

// Step takes one login request and its data segment, and returns the response
// header and text to send. Sequence numbers of the response are the caller's
// to fill in; the header's data length is set.
func (l *Login) Step(req *Header, data []byte) (resp Header, text []byte) {
	resp.SetOpcode(OpLoginResp)
	resp.SetISID(req.ISID())
	resp.SetTSIH(req.TSIH())
	resp.SetInitiatorTag(req.InitiatorTag())
	if e := l.step1(req, data, &resp); e != nil {
		l.Failed, l.Status, l.Why = true, e.status, e.err
		resp.SetStages(false, false, req.CSG(), 0)
		resp.SetLoginStatus(e.status)
		return resp, nil
	}
	// The answer's text goes out in pieces the initiator can take: until it
	// declares otherwise, 8192 bytes. Ours is far shorter; a list of unknown
	// keys sent to be echoed is not.
	text = l.reply
	if limit := DefaultParams().MaxSendLength; len(text) > limit {
		text, l.reply = text[:limit:limit], l.reply[limit:]
		resp.SetStages(false, true, l.stage, 0)
	} else {
		l.reply = nil
	}
	resp.SetDataLength(len(text))
	return resp, text
}

// step1 does the work of Step; it fills l.reply and resp's stages.
func (l *Login) step1(req *Header, data []byte, resp *Header) *loginError {
	if l.rounds++; l.rounds > maxLoginRounds {
		return refuse(LoginInitiatorError, "more than %d login requests", maxLoginRounds)
	}
	if e := l.checkHeader(req); e != nil {
		return e
	}
	if len(l.pending)+len(data) > MaxTextLength {
		return refuse(LoginInitiatorError, "login text over %d bytes", MaxTextLength)
	}
	if len(l.reply) > 0 {
		// The initiator asks for the rest of a long answer with an empty request.
		if len(data) > 0 || req.Continue() {
			return refuse(LoginInitiatorError, "text while our answer continues")
		}
		return l.transition(req, resp)
	}
	l.pending = append(l.pending, data...)
	if req.Continue() {
		resp.SetStages(false, false, l.stage, 0)
		return nil
	}
	pairs, err := ParseText(l.pending)
	l.pending = nil
	if err != nil {
		return refuse(LoginInitiatorError, "%w", err)
	}
	if !l.identified {
		if e := l.identify(req, pairs); e != nil {
			return e
		}
	}
	if l.stage == StageSecurity {
		if e := l.security(pairs); e != nil {
			return e
		}
	} else if e := l.operational(pairs); e != nil {
		return e
	}
	return l.transition(req, resp)
}

// checkHeader refuses a request that does not fit the protocol or the ones
// before it.
func (l *Login) checkHeader(req *Header) *loginError {
	if req.VersionMin() > 0 {
		return refuse(LoginBadVersion, "initiator needs version %d", req.VersionMin())
	}
	csg, nsg := req.CSG(), req.NSG()
	if csg > StageOperational {
		return refuse(LoginInitiatorError, "login request in stage %d", csg)
	}
	if req.Transit() && (req.Continue() || nsg <= csg || nsg == 2) {
		return refuse(LoginInitiatorError, "bad transit from stage %d to %d", csg, nsg)
	}
	if !l.began {
		l.began, l.stage, l.tag = true, csg, req.InitiatorTag()
		l.Identity.ISID, l.Identity.TSIH, l.Identity.CID = req.ISID(), req.TSIH(), req.CID()
		return nil
	}
	id := &l.Identity
	if csg != l.stage || req.ISID() != id.ISID || req.TSIH() != id.TSIH || req.CID() != id.CID || req.InitiatorTag() != l.tag {
		return refuse(LoginInvalidRequest, "login request does not continue the one before")
	}
	return nil
}

// identify reads the names of the first request. RFC 7143, 6.3: the leading
// request declares InitiatorName, and TargetName unless it is for discovery.
func (l *Login) identify(req *Header, pairs []Pair) *loginError {
	id := &l.Identity
	sessionType := "Normal"
	names := make(map[string]string)
	for _, p := range pairs {
		switch p.Key {
		case "InitiatorName", "TargetName", "SessionType", "InitiatorAlias":
			if _, twice := names[p.Key]; twice {
				return refuse(LoginInitiatorError, "key %s sent twice", p.Key)
			}
			names[p.Key] = p.Value
		}
	}
	if v, ok := names["SessionType"]; ok {
		sessionType = v
	}
	switch sessionType {
	case "Normal":
	case "Discovery":
		id.Discovery = true
	default:
		return refuse(LoginBadSessionType, "session type %.20q", sessionType)
	}
	var err error
	switch v, ok := names["InitiatorName"]; {
	case !ok:
		return refuse(LoginMissingParameter, "no InitiatorName")
	default:
		if id.InitiatorName, err = NormalizeName(v); err != nil {
			return refuse(LoginInitiatorError, "InitiatorName: %w", err)
		}
	}
	id.InitiatorAlias = printable(names["InitiatorAlias"])
	if v, ok := names["TargetName"]; ok {
		if id.TargetName, err = NormalizeName(v); err != nil {
			return refuse(LoginNotFound, "TargetName: %w", err)
		}
	} else if !id.Discovery {
		return refuse(LoginMissingParameter, "no TargetName")
	}
	auth, status := l.policy.Admit(*id)
	if status != LoginSuccess {
		return refuse(status, "%v", status)
	}
	l.auth, l.identified = auth, true
	l.neg = Negotiation{Own: l.Own, Discovery: id.Discovery}
	l.neg.Own.MaxSendLength = DefaultParams().MaxSendLength
	if l.stage == StageOperational && auth.In != nil {
		return refuse(LoginAuthFailure, "initiator skips the authentication it needs")
	}
	return nil
}

// printable cuts what an initiator says about itself to something a log or
// table can carry.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 255)]
}

// security answers the keys of the security stage.
func (l *Login) security(pairs []Pair) *loginError {
	vals := make(map[string]string)
	for _, p := range pairs {
		switch p.Key {
		case "InitiatorName", "TargetName", "SessionType", "InitiatorAlias":
		case "AuthMethod", "CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C":
			if _, twice := vals[p.Key]; twice {
				return refuse(LoginInitiatorError, "key %s sent twice", p.Key)
			}
			vals[p.Key] = p.Value
		default:
			// Operational keys belong to the next stage; some initiators
			// send them here, and they are negotiated all the same.
			var err error
			if l.reply, err = l.neg.Answer(l.reply, p); err != nil {
				return refuse(LoginInitiatorError, "%w", err)
			}
		}
	}
	if v, ok := vals["AuthMethod"]; ok {
		if e := l.chooseMethod(v); e != nil {
			return e
		}
	}
	l.declare()
	if list, ok := vals["CHAP_A"]; ok {
		if l.step != authMethod {
			return refuse(LoginInitiatorError, "CHAP_A out of place")
		}
		var err error
		if l.reply, err = l.chap.begin(l.reply, list, l.policy.Random); err != nil {
			return refuse(LoginAuthFailure, "%w", err)
		}
		l.step = authChallenge
		return nil
	}
	if l.step != authChallenge {
		return nil
	}
	proof := chapProof{name: vals["CHAP_N"], response: vals["CHAP_R"], identifier: vals["CHAP_I"], challenge: vals["CHAP_C"]}
	_, hasI := vals["CHAP_I"]
	_, hasC := vals["CHAP_C"]
	if proof.wantsMutual = hasI || hasC; hasI != hasC {
		return refuse(LoginAuthFailure, "CHAP_I and CHAP_C belong together")
	}
	var err error
	if l.reply, err = l.chap.verify(l.reply, proof, l.auth.In, l.auth.Mutual); err != nil {
		return refuse(LoginAuthFailure, "%w", err)
	}
	l.step = authProven
	return nil
}

// chooseMethod answers AuthMethod: the first of the initiator's list that
// satisfies what it must prove.
func (l *Login) chooseMethod(list string) *loginError {
	if l.step != authNone {
		return refuse(LoginInitiatorError, "AuthMethod out of place")
	}
	for v := range strings.SplitSeq(list, ",") {
		switch {
		case v == "CHAP" && l.auth.In != nil:
			l.step = authMethod
		case v == valueNone && l.auth.In == nil:
			l.step = authProven
		default:
			continue
		}
		l.reply = AppendPair(l.reply, "AuthMethod", v)
		return nil
	}
	if l.auth.In != nil {
		return refuse(LoginAuthFailure, "initiator offers %.40q, and must authenticate by CHAP", list)
	}
	return refuse(LoginAuthFailure, "initiator insists on one of %.40q, and has no secret here", list)
}

// operational answers the keys of the operational stage.
func (l *Login) operational(pairs []Pair) *loginError {
	for _, p := range pairs {
		switch p.Key {
		case "InitiatorName", "TargetName", "SessionType", "InitiatorAlias":
			continue
		case "AuthMethod", "CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C":
			return refuse(LoginInitiatorError, "key %s after the security stage", p.Key)
		}
		var err error
		if l.reply, err = l.neg.Answer(l.reply, p); err != nil {
			return refuse(LoginInitiatorError, "%w", err)
		}
	}
	l.declare()
	if l.stage == StageOperational && !l.ended {
		l.reply = AppendPair(l.reply, "MaxRecvDataSegmentLength", strconv.Itoa(l.Own.MaxRecvLength))
		l.ended = true
	}
	return nil
}

// declare appends what a target says of itself in its first answer. RFC 7143,
// 13.9: the portal group tag, in normal sessions.
func (l *Login) declare() {
	if l.declared {
		return
	}
	l.declared = true
	if l.Identity.Discovery {
		return
	}
	l.reply = AppendPair(l.reply, "TargetPortalGroupTag", strconv.Itoa(int(l.PortalGroup)))
	if l.Alias != "" {
		l.reply = AppendPair(l.reply, "TargetAlias", l.Alias)
	}
}

// transition answers the request's T bit, and enters the stage asked for.
func (l *Login) transition(req *Header, resp *Header) *loginError {
	resp.SetStages(false, false, l.stage, 0)
	if !req.Transit() || len(l.reply) > DefaultParams().MaxSendLength {
		return nil
	}
	nsg := req.NSG()
	if l.stage == StageSecurity {
		switch {
		case l.step == authProven:
		case l.step == authNone && l.auth.In == nil:
			// The initiator asked for no method, and needs none.
		case l.step == authNone:
			return refuse(LoginAuthFailure, "initiator leaves the security stage unproven")
		default:
			return nil // the exchange goes on; an early T bit is not granted
		}
		if nsg == StageFullFeature && !l.ended {
			// Skipping the operational stage: our declaration goes here.
			l.reply = AppendPair(l.reply, "MaxRecvDataSegmentLength", strconv.Itoa(l.Own.MaxRecvLength))
			l.ended = true
		}
	}
	if nsg == StageFullFeature {
		l.Params = l.neg.Result()
		l.Params.MaxRecvLength = l.Own.MaxRecvLength
		tsih, status := l.policy.Enter(l.Identity, l.Params)
		if status != LoginSuccess {
			return refuse(status, "%v", status)
		}
		l.tsih, l.Done = tsih, true
		resp.SetTSIH(tsih)
	}
	resp.SetStages(true, false, l.stage, nsg)
	l.stage = nsg
	return nil
}
