package iscsi

import (
	"crypto/subtle"
	"fmt"
	"strconv"
	"strings"
)

// LoginRefused is a login response's status other than success. Address is
// where the target was moved to, for the two statuses that say so.
type LoginRefused struct {
	Status  LoginStatus
	Address string // host:port, the portal group tag cut off; or empty
}

// Error implements error.
func (e *LoginRefused) Error() string {
	if e.Address != "" {
		return fmt.Sprintf("login refused: %v to %s", e.Status, e.Address)
	}
	return "login refused: " + e.Status.String()
}

// ErrMutual says that the target could not prove who it is.
var ErrMutual = fmt.Errorf("the target did not prove that it knows the mutual CHAP secret")

// Initiate is the initiator's side of one connection's login phase: the twin
// of Login. Send what Request returns and give Take the response, until Done.
//
//	security --None--------------------------> operational --> full feature
//	    |                                           ^
//	    +--CHAP--> CHAP_A --> CHAP_N, CHAP_R -------+ (mutual proof checked)
//
// The first response carries the target's portal group tag, and the login is
// not over before the second request: who must not end a session of the same
// nexus (RFC 7143, 6.3.5) looks at Group in between, and hangs up.
type Initiate struct {
	// InitiatorName, TargetName (empty in a discovery session) and ISID name
	// the session.
	InitiatorName, TargetName string
	Discovery                 bool
	ISID                      ISID
	// Auth.In is what we prove, Auth.Mutual what the target must prove to us.
	// Without In nothing is proven. With Mutual a target that does not prove
	// itself is refused.
	Auth Auth
	// MD5Only offers no other hash for CHAP: some targets (tgt) answer a list
	// that begins with SHA-256 with LoginInitiatorError.
	MD5Only bool
	// Offer are the values to offer. Its digests are preferences: a target
	// without digests is accepted unless DigestsOnly is set.
	Offer       Params
	DigestsOnly bool
	// Random fills its argument with unpredictable bytes.
	Random func([]byte)

	// Done is set when the connection is in the full feature phase.
	Done bool
	// Group is the portal group tag, HasGroup whether one was declared.
	Group    uint16
	HasGroup bool
	Alias    string
	TSIH     uint16
	// Params are the outcome.
	Params Params
	// StatSN is that of the last response: the next PDU carries one more.
	StatSN uint32

	step     initStep
	rounds   int
	began    bool // a response was taken
	more     bool // the target's text goes on
	pending  []byte
	answers  []byte // to offers of the target
	declared bool   // operational keys were sent
	chapID   byte   // ours, to the target
	chapAlg  CHAPAlgorithm
	chall    []byte
	theirs   struct{ id, challenge string }
	neg      Negotiation
	offered  map[string]string
}

// initStep is what the next request is about.
type initStep uint8

const (
	initMethod initStep = iota // AuthMethod
	initAlgorithm
	initProof
	initLeave // nothing more to prove: ask for the operational stage
	initOperational
)

// Request returns the next login request, with its text. The command sequence
// number is the caller's to fill in; lengths are set.
func (l *Initiate) Request() (h Header, text []byte) {
	h.SetOpcode(OpLoginReq)
	h.SetImmediate()
	h.SetISID(l.ISID)
	if l.began {
		h.SetExpStatSN(l.StatSN + 1)
	}
	if l.more {
		// An empty request asks for the rest. RFC 7143, 6.2.
		h.SetStages(false, false, l.stage(), 0)
		return h, nil
	}
	transit := false
	switch l.step {
	case initMethod:
		text, transit = l.names(), l.Auth.In == nil
	case initAlgorithm:
		list := "7,5"
		if l.MD5Only {
			list = "5"
		}
		text = AppendPair(text, "CHAP_A", list)
	case initProof:
		text, transit = l.proof(), true
	case initLeave:
		transit = true
	case initOperational:
		if !l.declared {
			l.declared = true
			text = l.operational()
		}
		transit = true
	}
	text = append(text, l.answers...)
	l.answers = nil
	next := StageOperational
	if l.step == initOperational {
		next = StageFullFeature
	}
	if !transit {
		next = 0
	}
	h.SetStages(transit, false, l.stage(), next)
	h.SetDataLength(len(text))
	return h, text
}

func (l *Initiate) stage() Stage {
	if l.step == initOperational {
		return StageOperational
	}
	return StageSecurity
}

// names returns the text of the first request.
func (l *Initiate) names() []byte {
	l.neg = Negotiation{Own: l.Offer, Discovery: l.Discovery}
	l.neg.Own.MaxSendLength = DefaultParams().MaxSendLength
	text := AppendPair(nil, "InitiatorName", l.InitiatorName)
	if l.Discovery {
		text = AppendPair(text, "SessionType", "Discovery")
	} else {
		text = AppendPair(text, "SessionType", "Normal")
		text = AppendPair(text, "TargetName", l.TargetName)
	}
	switch {
	case l.Auth.In == nil:
		return AppendPair(text, "AuthMethod", valueNone)
	case l.Auth.Mutual != nil:
		return AppendPair(text, "AuthMethod", "CHAP")
	}
	return AppendPair(text, "AuthMethod", "CHAP,None")
}

// proof answers the target's challenge, and asks ours of it.
func (l *Initiate) proof() []byte {
	challenge, _ := ParseBinary(l.theirs.challenge) // checked by Take
	id, _ := parseNumber(l.theirs.id)
	text := AppendPair(nil, "CHAP_N", l.Auth.In.Name)
	text = AppendPair(text, "CHAP_R", FormatBinary(CHAPResponse(l.chapAlg, byte(id), l.Auth.In.Secret, challenge)))
	if l.Auth.Mutual == nil {
		return text
	}
	var b [1]byte
	l.Random(b[:])
	l.chapID, l.chall = b[0], make([]byte, challengeLength(l.chapAlg))
	l.Random(l.chall)
	text = AppendPair(text, "CHAP_I", strconv.Itoa(int(l.chapID)))
	return AppendPair(text, "CHAP_C", FormatBinary(l.chall))
}

// operational returns our offers.
func (l *Initiate) operational() []byte {
	o := &l.Offer
	digest := func(on bool) string {
		switch {
		case on && l.DigestsOnly:
			return "CRC32C"
		case on:
			return "CRC32C,None"
		}
		return valueNone
	}
	yes := func(v bool) string {
		if v {
			return "Yes"
		}
		return "No"
	}
	list := []Pair{{"HeaderDigest", digest(o.HeaderDigest)}, {"DataDigest", digest(o.DataDigest)}}
	if !l.Discovery {
		list = append(list,
			Pair{"MaxConnections", "1"}, Pair{"InitialR2T", yes(o.InitialR2T)}, Pair{"ImmediateData", yes(o.ImmediateData)},
			Pair{"MaxBurstLength", strconv.Itoa(o.MaxBurstLength)}, Pair{"FirstBurstLength", strconv.Itoa(o.FirstBurstLength)},
			Pair{"MaxOutstandingR2T", strconv.Itoa(o.MaxOutstandingR2T)},
			Pair{"DataPDUInOrder", "Yes"}, Pair{"DataSequenceInOrder", "Yes"})
	}
	list = append(list,
		Pair{"DefaultTime2Wait", strconv.Itoa(o.DefaultTime2Wait)}, Pair{"DefaultTime2Retain", strconv.Itoa(o.DefaultTime2Retain)},
		Pair{"ErrorRecoveryLevel", "0"})
	l.offered = make(map[string]string)
	var text []byte
	for _, p := range list {
		l.offered[p.Key] = p.Value
		text = AppendPair(text, p.Key, p.Value)
	}
	return AppendPair(text, "MaxRecvDataSegmentLength", strconv.Itoa(o.MaxRecvLength))
}

// Take takes a login response. An error ends the login: *LoginRefused when the
// target said no, ErrMutual when it is not who it should be, and else
// something that no target may send.
func (l *Initiate) Take(h *Header, data []byte) error {
	if l.rounds++; l.rounds > maxLoginRounds {
		return fmt.Errorf("more than %d login responses", maxLoginRounds)
	}
	if h.Opcode() != OpLoginResp {
		return fmt.Errorf("%v in answer to a login request", h.Opcode())
	}
	// A refusal is one whatever its other fields say: tgt leaves them zero.
	refused := h.LoginStatus() != LoginSuccess
	switch {
	case refused:
	case h.ISID() != l.ISID:
		return fmt.Errorf("login response with the ISID of another")
	case l.began && h.StatSN() != l.StatSN+1:
		return fmt.Errorf("login response with StatSN %d after %d", h.StatSN(), l.StatSN)
	}
	l.began, l.StatSN = true, h.StatSN()
	if len(l.pending)+len(data) > MaxTextLength {
		return fmt.Errorf("login text over %d bytes", MaxTextLength)
	}
	l.pending = append(l.pending, data...)
	if refused {
		return l.refused(h.LoginStatus())
	}
	if h.CSG() != l.stage() {
		return fmt.Errorf("login response of stage %d in stage %d", h.CSG(), l.stage())
	}
	if l.more = h.Continue(); l.more {
		if h.Transit() {
			return fmt.Errorf("login response that continues and transits")
		}
		return nil
	}
	pairs, err := ParseText(l.pending)
	l.pending = nil
	if err != nil {
		return fmt.Errorf("login response: %w", err)
	}
	if l.step == initOperational {
		err = l.takeOperational(h, pairs)
	} else {
		err = l.takeSecurity(h, pairs)
	}
	return err
}

// refused reads where a target was moved to. RFC 7143, 13.8: an address may
// carry a port and a tag.
func (l *Initiate) refused(s LoginStatus) error {
	e := &LoginRefused{Status: s}
	if s != LoginMovedTemporarily && s != LoginMovedPermanently {
		return e
	}
	pairs, err := ParseText(l.pending)
	if err != nil {
		return e
	}
	for _, p := range pairs {
		if p.Key == "TargetAddress" {
			e.Address, _, _ = strings.Cut(p.Value, ",")
		}
	}
	return e
}

// takeSecurity takes the answers of the security stage.
func (l *Initiate) takeSecurity(h *Header, pairs []Pair) error {
	got := make(map[string]string)
	for _, p := range pairs {
		if _, twice := got[p.Key]; twice {
			return fmt.Errorf("key %s sent twice", p.Key)
		}
		got[p.Key] = p.Value
		switch p.Key {
		case "AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R":
		default:
			if err := l.declaration(p); err != nil {
				return err
			}
		}
	}
	switch l.step {
	case initMethod:
		if err := l.method(got["AuthMethod"]); err != nil {
			return err
		}
	case initAlgorithm:
		if err := l.challenged(got); err != nil {
			return err
		}
	case initProof:
		if err := l.proven(got); err != nil {
			return err
		}
		l.step = initLeave
	default:
	}
	if !h.Transit() {
		return nil
	}
	if l.step != initLeave || h.NSG() != StageOperational {
		return fmt.Errorf("the target leaves the security stage for %d before its end", h.NSG())
	}
	l.step = initOperational
	return nil
}

// method takes the target's choice. A target that answers nothing to None has
// nothing to ask.
func (l *Initiate) method(v string) error {
	switch {
	case v == "CHAP" && l.Auth.In != nil:
		l.step = initAlgorithm
	case v == valueNone && l.Auth.Mutual == nil, v == "" && l.Auth.In == nil:
		l.step = initLeave
	default:
		return fmt.Errorf("AuthMethod=%.20q is not what was offered", v)
	}
	return nil
}

// challenged takes the target's challenge.
func (l *Initiate) challenged(got map[string]string) error {
	switch got["CHAP_A"] {
	case "5":
		l.chapAlg = CHAPMD5
	case "7":
		l.chapAlg = CHAPSHA256
		if l.MD5Only {
			return fmt.Errorf("CHAP_A=7 is not what was offered")
		}
	default:
		return fmt.Errorf("CHAP_A=%.20q is not what was offered", got["CHAP_A"])
	}
	c, err := ParseBinary(got["CHAP_C"])
	if err != nil || len(c) > maxChallengeLength {
		return fmt.Errorf("CHAP_C is not a binary value of at most %d bytes", maxChallengeLength)
	}
	if n, ok := parseNumber(got["CHAP_I"]); !ok || n > 255 {
		return fmt.Errorf("CHAP_I is not a byte")
	}
	l.theirs.id, l.theirs.challenge = got["CHAP_I"], got["CHAP_C"]
	l.step = initProof
	return nil
}

// proven checks the target's own proof. Both comparisons run always and in
// constant time.
func (l *Initiate) proven(got map[string]string) error {
	if l.Auth.Mutual == nil {
		return nil
	}
	r, err := ParseBinary(got["CHAP_R"])
	if err != nil {
		return ErrMutual
	}
	want := CHAPResponse(l.chapAlg, l.chapID, l.Auth.Mutual.Secret, l.chall)
	nameOK := subtle.ConstantTimeCompare([]byte(got["CHAP_N"]), []byte(l.Auth.Mutual.Name))
	proofOK := subtle.ConstantTimeCompare(r, want)
	// A target that reflects: asked with our own challenge it would hear the
	// answer from us. RFC 7143, 9.2.1.
	theirs, _ := ParseBinary(l.theirs.challenge)
	if nameOK&proofOK != 1 || subtle.ConstantTimeCompare(theirs, l.chall) == 1 {
		return ErrMutual
	}
	return nil
}

// declaration takes what a target says of itself, and answers what it offers.
func (l *Initiate) declaration(p Pair) error {
	switch p.Key {
	case "TargetPortalGroupTag":
		n, ok := parseNumber(p.Value)
		if !ok || n > 0xffff || l.HasGroup && uint16(n) != l.Group {
			return fmt.Errorf("TargetPortalGroupTag=%.20q", p.Value)
		}
		l.Group, l.HasGroup = uint16(n), true
		return nil
	case "TargetAlias":
		l.Alias = printable(p.Value)
		return nil
	case "TargetAddress":
		return nil
	}
	if p.Value == valueNotUnderstood || p.Value == valueIrrelevant || p.Value == valueReject {
		return nil
	}
	var err error
	l.answers, err = l.neg.Answer(l.answers, p)
	return err
}

// takeOperational takes the answers to our offers.
func (l *Initiate) takeOperational(h *Header, pairs []Pair) error {
	for _, p := range pairs {
		offer, ours := l.offered[p.Key]
		if !ours {
			if err := l.declaration(p); err != nil {
				return err
			}
			continue
		}
		delete(l.offered, p.Key)
		if err := l.settle(p, offer); err != nil {
			return err
		}
	}
	if !h.Transit() {
		return nil
	}
	if h.NSG() != StageFullFeature {
		return fmt.Errorf("transit from the operational stage to %d", h.NSG())
	}
	l.Params = l.neg.Result()
	l.Params.MaxRecvLength = l.Offer.MaxRecvLength
	if l.DigestsOnly && (l.Params.HeaderDigest != l.Offer.HeaderDigest || l.Params.DataDigest != l.Offer.DataDigest) {
		return fmt.Errorf("the target does without the digests that are demanded")
	}
	l.TSIH, l.Done = h.TSIH(), true
	return nil
}

// settle takes the target's answer to one offer: the outcome, if it is one
// that the rule of the key can have. RFC 7143, 6.2.2 and 13.
func (l *Initiate) settle(p Pair, offer string) error {
	bad := fmt.Errorf("%s=%.20q is no answer to %s", p.Key, p.Value, offer)
	spec := keys[p.Key]
	switch p.Value {
	case valueNotUnderstood, valueIrrelevant, valueReject:
		return nil // the default stands
	}
	switch spec.rule {
	case ruleDigest:
		if p.Value != valueNone && (p.Value != "CRC32C" || !strings.Contains(offer, "CRC32C")) {
			return bad
		}
		*spec.boolean(&l.neg.Own) = p.Value == "CRC32C"
	case ruleAnd, ruleOr:
		if p.Value != "Yes" && p.Value != "No" {
			return bad
		}
		// What we said already decides: No for an AND, Yes for an OR.
		if decided := map[rule]string{ruleAnd: "No", ruleOr: "Yes"}[spec.rule]; offer == decided && p.Value != offer {
			return bad
		}
		*spec.boolean(&l.neg.Own) = p.Value == "Yes"
	case ruleMin, ruleMax:
		v, ok := parseNumber(p.Value)
		o, _ := parseNumber(offer)
		if !ok || v < uint64(spec.low) || v > uint64(spec.high) || spec.rule == ruleMin && v > o || spec.rule == ruleMax && v < o {
			return bad
		}
		*spec.number(&l.neg.Own) = int(v)
	default:
		return bad
	}
	l.neg.agree(p.Key)
	return nil
}
