package iscsi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"steadfast/fault"
)

// MaxNameLength is the longest iSCSI name in bytes. RFC 7143, 4.2.7.1.
const MaxNameLength = 223

// NormalizeName checks an iSCSI name and returns the form to compare and
// store: upper-case letters become lower-case, as stringprep's case folding
// does for the characters a name may have. Fails with fault.Invalid, saying
// what is wrong. RFC 7143, 4.2.7; RFC 3722; RFC 3980 (naa.).
//
// Non-ASCII letters are kept as they come, but for case: a name that arrives
// in a different Unicode normal form is a different name, which can deny
// access and never grant it.
func NormalizeName(name string) (string, error) {
	if name == "" || len(name) > MaxNameLength {
		return "", fault.New(fault.Invalid, "iSCSI name has %d bytes; it must have 1 to %d", len(name), MaxNameLength)
	}
	if !utf8.ValidString(name) {
		return "", fault.New(fault.Invalid, "iSCSI name %q is not UTF-8", name)
	}
	n := strings.ToLower(name)
	if len(n) > MaxNameLength {
		// A few letters are longer in lower case.
		return "", fault.New(fault.Invalid, "iSCSI name has %d bytes in lower case; it must have 1 to %d", len(n), MaxNameLength)
	}
	for _, r := range n {
		// RFC 3722, 6: of ASCII only dash, dot, colon, digits and letters.
		ok := r == '-' || r == '.' || r == ':' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z'
		if !ok && (r < 0x80 || !unicode.IsLetter(r) && !unicode.IsDigit(r)) {
			return "", fault.New(fault.Invalid, "iSCSI name %q may not contain %q", name, r)
		}
	}
	switch typ, rest, _ := strings.Cut(n, "."); typ {
	case "iqn":
		if !validIQN(rest) {
			return "", fault.New(fault.Invalid, "iSCSI name %q is not iqn.YYYY-MM.reversed-domain[:text]", name)
		}
	case "eui":
		if len(rest) != 16 || !isHex(rest) {
			return "", fault.New(fault.Invalid, "iSCSI name %q is not eui. and 16 hex digits", name)
		}
	case "naa":
		if (len(rest) != 16 && len(rest) != 32) || !isHex(rest) {
			return "", fault.New(fault.Invalid, "iSCSI name %q is not naa. and 16 or 32 hex digits", name)
		}
	default:
		return "", fault.New(fault.Invalid, "iSCSI name %q begins with none of iqn., eui., naa.", name)
	}
	return n, nil
}

// validIQN checks what follows "iqn.": a year and month and a naming authority.
func validIQN(s string) bool {
	if len(s) < 9 || s[4] != '-' || s[7] != '.' {
		return false
	}
	for i, c := range []byte(s[:7]) {
		if i != 4 && (c < '0' || c > '9') {
			return false
		}
	}
	if m := s[5:7]; m < "01" || m > "12" {
		return false
	}
	authority, _, _ := strings.Cut(s[8:], ":")
	return authority != "" && !strings.HasPrefix(authority, ".")
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// PortName returns the SCSI port name of an initiator's session: the name
// that persistent reservations go by. RFC 7143, 4.4.3.
func PortName(initiator string, id ISID) string { return initiator + ",i,0x" + id.String() }
