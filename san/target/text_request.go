package target

import (
	"steadfast/iscsi"
)

// textRequest answers a text request of the full feature phase: SendTargets,
// and the few keys that may be negotiated then. RFC 7143, 11.10 and appendix C.
func (s *session) textRequest(h *iscsi.Header, n int) error {
	data, ok, err := s.small(h, n)
	if err != nil || !ok {
		return err
	}
	if h.TargetTag() == iscsi.NoTag {
		// A new exchange; one that was under way is forgotten, as the RFC's
		// negotiation reset says.
		s.textIn, s.textOut = nil, nil
	} else if s.textTag == 0 || h.TargetTag() != s.textTag {
		return s.refusePDU(h, 0, iscsi.RejectProtocolError, "text request with a wrong tag")
	}
	if len(s.textOut) > 0 {
		s.sendText(h)
		return nil
	}
	if len(s.textIn)+len(data) > iscsi.MaxTextLength {
		s.textIn = nil
		return s.refusePDU(h, 0, iscsi.RejectProtocolError, "text too long")
	}
	s.textIn = append(s.textIn, data...)
	if h.Continue() {
		s.sendText(h)
		return nil
	}
	pairs, err := iscsi.ParseText(s.textIn)
	s.textIn = nil
	if err != nil {
		return s.refusePDU(h, 0, iscsi.RejectProtocolError, "malformed text")
	}
	neg := iscsi.Negotiation{Own: s.params, Discovery: s.id.Discovery, FullFeature: true}
	for _, p := range pairs {
		if p.Key == "SendTargets" {
			s.textOut = s.sendTargets(s.textOut, p.Value)
			continue
		}
		if s.textOut, err = neg.Answer(s.textOut, p); err != nil {
			s.textOut = nil
			return s.refusePDU(h, 0, iscsi.RejectProtocolError, "malformed negotiation")
		}
	}
	// MaxRecvDataSegmentLength is the one value that may change now.
	s.mu.Lock()
	s.params.MaxSendLength = neg.Own.MaxSendLength
	s.mu.Unlock()
	s.sendText(h)
	return nil
}

// sendText sends the next piece of the answer, or an empty one that asks for
// the rest of the request.
func (s *session) sendText(req *iscsi.Header) {
	piece := s.textOut[:min(len(s.textOut), s.params.MaxSendLength)]
	s.textOut = s.textOut[len(piece):]
	more := len(s.textOut) > 0
	done := !more && !req.Continue() && req.Final()
	s.mu.Lock()
	h := s.header()
	h.SetOpcode(iscsi.OpTextResp)
	h.SetInitiatorTag(req.InitiatorTag())
	h.SetLUN(req.LUN())
	s.textTag = 0
	switch {
	case done:
		h.SetFlags(iscsi.FlagFinal)
		h.SetTargetTag(iscsi.NoTag)
	default:
		if more {
			h.SetFlags(iscsi.FlagContinue)
		}
		s.lastTag++
		if s.lastTag == iscsi.NoTag {
			s.lastTag = 1
		}
		s.textTag = s.lastTag
		h.SetTargetTag(s.textTag)
	}
	s.stat(h)
	h.SetDataLength(len(piece))
	s.endHeader()
	s.payload(piece)
	s.mu.Unlock()
}

// sendTargets answers SendTargets with the targets the initiator may log in
// to. A normal session learns of its own target only, by its name or an empty
// value; All must not be answered there. RFC 7143, appendix C.
func (s *session) sendTargets(b []byte, value string) []byte {
	var want string
	switch {
	case value == "All" && s.id.Discovery:
	case value == "" && !s.id.Discovery:
		want = s.id.TargetName
	default:
		name, err := iscsi.NormalizeName(value)
		if err != nil || !s.id.Discovery && name != s.id.TargetName {
			return iscsi.AppendPair(b, "SendTargets", "Reject")
		}
		want = name
	}
	return s.srv.appendTargets(b, s.id.InitiatorName, want, s.portal, s.conn.LocalAddr())
}
