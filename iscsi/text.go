package iscsi

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Bounds on text. RFC 7143, 6.1 and 6.2.
const (
	MaxKeyLength   = 63
	MaxTextLength  = 64 << 10 // our bound on one negotiation's text, in bytes
	maxValueLength = 8 << 10  // our bound on one value; the RFC demands 255, and CHAP up to 1024 binary bytes
)

// Pair is one key=value.
type Pair struct{ Key, Value string }

// ParseText splits a text data segment into its pairs, in order. A missing
// final NUL and extra NULs are accepted, as real initiators send them; a pair
// without "=", a malformed key and an overlong value are errors. RFC 7143, 6.1.
func ParseText(b []byte) ([]Pair, error) {
	if len(b) > MaxTextLength {
		return nil, fmt.Errorf("text of %d bytes; at most %d are accepted", len(b), MaxTextLength)
	}
	var pairs []Pair
	for len(b) > 0 {
		item := b
		if i := bytes.IndexByte(b, 0); i >= 0 {
			item, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if len(item) == 0 {
			continue
		}
		key, value, ok := bytes.Cut(item, []byte{'='})
		if !ok {
			return nil, fmt.Errorf("text without '=': %.40q", item)
		}
		if !validKey(key) {
			return nil, fmt.Errorf("malformed key %.70q", key)
		}
		if len(value) > maxValueLength {
			return nil, fmt.Errorf("value of %s has %d bytes; at most %d are accepted", key, len(value), maxValueLength)
		}
		pairs = append(pairs, Pair{string(key), string(value)})
	}
	return pairs, nil
}

// validKey checks a key-name: a letter and up to 62 of letters, digits and
// ".-+@_" (and "#" and "/", which X# and X- keys use). RFC 7143, 6.1.
func validKey(k []byte) bool {
	if len(k) == 0 || len(k) > MaxKeyLength {
		return false
	}
	for i, c := range k {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !('0' <= c && c <= '9') && !strings.ContainsRune(".-+@_#/", rune(c))) {
			return false
		}
	}
	return true
}

// AppendPair appends key=value and the NUL that ends it.
func AppendPair(b []byte, key, value string) []byte {
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, 0)
}

// parseNumber reads a decimal or hex constant. RFC 7143, 6.1
// (numerical-value, large-numerical-value without base64).
func parseNumber(s string) (uint64, bool) {
	base := 10
	if len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
		s, base = s[2:], 16
	}
	// ParseUint accepts a sign nowhere but underscores only for base 0, so
	// what it takes is what the RFC's grammar takes.
	n, err := strconv.ParseUint(s, base, 64)
	return n, err == nil
}

// ParseBinary decodes a binary-value: 0x and hex digits, or 0b and base64. An
// odd number of hex digits means a leading zero. RFC 7143, 6.1.
func ParseBinary(s string) ([]byte, error) {
	if len(s) < 2 || s[0] != '0' {
		return nil, fmt.Errorf("binary value without 0x or 0b")
	}
	body := s[2:]
	switch s[1] {
	case 'x', 'X':
		if len(body)%2 == 1 {
			body = "0" + body
		}
		b, err := hex.DecodeString(body)
		if err != nil || len(b) == 0 {
			return nil, fmt.Errorf("binary value is not hex")
		}
		return b, nil
	case 'b', 'B':
		// Padding may be left out: some initiators do.
		body = strings.TrimRight(body, "=")
		b, err := base64.RawStdEncoding.DecodeString(body)
		if err != nil || len(b) == 0 || strings.ContainsAny(body, "\r\n") {
			return nil, fmt.Errorf("binary value is not base64")
		}
		return b, nil
	}
	return nil, fmt.Errorf("binary value without 0x or 0b")
}

// FormatBinary encodes b as 0x and hex digits, the form every peer reads.
func FormatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }
