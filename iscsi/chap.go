package iscsi

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"

	"steadfast/fault"
)

// CHAPAlgorithm is a hash for CHAP, with its number in the PPP registry that
// RFC 7143, 12.1.3, refers to.
type CHAPAlgorithm uint8

// Algorithms. The RFC demands MD5 of everyone.
const (
	CHAPMD5    CHAPAlgorithm = 5
	CHAPSHA256 CHAPAlgorithm = 7
)

// Bounds on CHAP values in bytes. RFC 7143, 9.2.1 and 12.1.3.
const (
	MinSecretLength    = 12 // 96 bits: shorter secrets fall to an offline dictionary attack
	maxChallengeLength = 1024
	maxCHAPNameLength  = 255
)

// Credentials are one direction's CHAP name and secret.
type Credentials struct {
	Name   string
	Secret []byte
}

// String hides the secret from every format that prints values.
func (c Credentials) String() string { return "chap:" + c.Name }

// GoString hides the secret from %#v.
func (c Credentials) GoString() string { return c.String() }

// Check returns fault.Invalid for credentials nobody may use.
func (c Credentials) Check() error {
	switch {
	case c.Name == "" || len(c.Name) > maxCHAPNameLength:
		return fault.New(fault.Invalid, "CHAP name has %d bytes; it must have 1 to %d", len(c.Name), maxCHAPNameLength)
	case strings.ContainsRune(c.Name, 0):
		return fault.New(fault.Invalid, "CHAP name contains a NUL")
	case len(c.Secret) < MinSecretLength || len(c.Secret) > 255:
		return fault.New(fault.Invalid, "CHAP secret has %d bytes; it must have %d to 255", len(c.Secret), MinSecretLength)
	}
	return nil
}

// CHAPResponse returns the response to a challenge: the hash over identifier,
// secret and challenge. RFC 1994, 4.1.
func CHAPResponse(a CHAPAlgorithm, id byte, secret, challenge []byte) []byte {
	msg := make([]byte, 0, 1+len(secret)+len(challenge))
	msg = append(msg, id)
	msg = append(msg, secret...)
	msg = append(msg, challenge...)
	if a == CHAPSHA256 {
		h := sha256.Sum256(msg)
		return h[:]
	}
	h := md5.Sum(msg)
	return h[:]
}

// chooseAlgorithm picks from the initiator's list, in its order. RFC 7143,
// 12.1.3: an initiator that offers none of ours is refused.
func chooseAlgorithm(list string) (CHAPAlgorithm, error) {
	for v := range strings.SplitSeq(list, ",") {
		switch n, ok := parseNumber(v); {
		case ok && n == uint64(CHAPMD5):
			return CHAPMD5, nil
		case ok && n == uint64(CHAPSHA256):
			return CHAPSHA256, nil
		}
	}
	return 0, fmt.Errorf("no CHAP algorithm in common: offered %.40q", list)
}

// challengeLength is the challenge's length in bytes: the hash's own, so that
// the challenge is no weaker than the response.
func challengeLength(a CHAPAlgorithm) int {
	if a == CHAPSHA256 {
		return sha256.Size
	}
	return md5.Size
}

// chap is the target's side of one CHAP exchange.
type chap struct {
	algorithm CHAPAlgorithm
	id        byte
	challenge []byte
}

// begin answers CHAP_A with the choice and a fresh challenge. random fills
// its argument with unpredictable bytes.
func (c *chap) begin(b []byte, list string, random func([]byte)) ([]byte, error) {
	a, err := chooseAlgorithm(list)
	if err != nil {
		return b, err
	}
	var id [1]byte
	random(id[:])
	c.algorithm, c.id, c.challenge = a, id[0], make([]byte, challengeLength(a))
	random(c.challenge)
	b = AppendPair(b, "CHAP_A", fmt.Sprint(uint8(a)))
	b = AppendPair(b, "CHAP_I", fmt.Sprint(c.id))
	return AppendPair(b, "CHAP_C", FormatBinary(c.challenge)), nil
}

// chapProof is what an initiator sends in the last step.
type chapProof struct {
	name, response        string
	identifier, challenge string
	wantsMutual           bool
}

// verify checks the proof against the initiator's credentials and appends our
// own proof when the initiator asked for one. Every failure looks the same to
// the initiator; the error is for our log and holds no secret.
func (c *chap) verify(b []byte, p chapProof, in, mutual *Credentials) ([]byte, error) {
	got, err := ParseBinary(p.response)
	if err != nil {
		return b, fmt.Errorf("CHAP_R: %w", err)
	}
	want := CHAPResponse(c.algorithm, c.id, in.Secret, c.challenge)
	// Both comparisons run always and in constant time: the answer's timing
	// must not tell a wrong name from a wrong secret, nor how much matched.
	// A response of another length than the hash is refused, not cut.
	nameOK := subtle.ConstantTimeCompare([]byte(p.name), []byte(in.Name))
	proofOK := subtle.ConstantTimeCompare(got, want)
	if nameOK&proofOK != 1 {
		return b, fmt.Errorf("CHAP name or response is wrong")
	}
	if !p.wantsMutual {
		return b, nil
	}
	if mutual == nil {
		return b, fmt.Errorf("initiator asks the target to authenticate, and no mutual secret is set")
	}
	id, ok := parseNumber(p.identifier)
	if !ok || id > 255 {
		return b, fmt.Errorf("CHAP_I is not a byte")
	}
	challenge, err := ParseBinary(p.challenge)
	if err != nil || len(challenge) > maxChallengeLength {
		return b, fmt.Errorf("CHAP_C is not a binary value of at most %d bytes", maxChallengeLength)
	}
	// Reflection: an attacker who is asked our challenge asks it back, to be
	// told the answer. RFC 7143, 9.2.1. (Secrets of the two directions also
	// differ, which Auth.Check sees to.)
	if subtle.ConstantTimeCompare(challenge, c.challenge) == 1 {
		return b, fmt.Errorf("initiator reflects our own challenge")
	}
	b = AppendPair(b, "CHAP_N", mutual.Name)
	r := CHAPResponse(c.algorithm, byte(id), mutual.Secret, challenge)
	return AppendPair(b, "CHAP_R", FormatBinary(r)), nil
}

// Auth is what a login must prove. The zero Auth asks for nothing.
type Auth struct {
	In     *Credentials // the initiator's, which it must prove; nil: none asked
	Mutual *Credentials // ours, proven when the initiator asks
}

// Check returns fault.Invalid for a combination that would be unsafe.
func (a Auth) Check() error {
	if a.In != nil {
		if err := a.In.Check(); err != nil {
			return err
		}
	}
	if a.Mutual == nil {
		return nil
	}
	if a.In == nil {
		return fault.New(fault.Invalid, "mutual CHAP needs a CHAP secret for the initiator as well")
	}
	if err := a.Mutual.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "mutual CHAP")
	}
	// RFC 7143, 9.2.1: one secret for both directions invites reflection.
	if subtle.ConstantTimeCompare(a.In.Secret, a.Mutual.Secret) == 1 {
		return fault.New(fault.Invalid, "the mutual CHAP secret must differ from the initiator's")
	}
	return nil
}
