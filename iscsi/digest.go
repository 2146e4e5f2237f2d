package iscsi

import "hash/crc32"

// DigestSize is a digest's length on the wire in bytes.
const DigestSize = 4

// castagnoli is the CRC32C table; crc32 uses the processor's instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeros pads data segments for digests.
var zeros [4]byte

// Digest returns the CRC32C of p. On the wire it stands in little-endian
// order: the RFC defines the bit order, and every implementation agrees on
// these bytes. RFC 7143, 13.1.
func Digest(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// UpdateDigest continues a digest over p.
func UpdateDigest(d uint32, p []byte) uint32 { return crc32.Update(d, castagnoli, p) }

// DataDigest returns the digest of a data segment: the payload and its padding.
func DataDigest(p []byte) uint32 {
	return UpdateDigest(Digest(p), zeros[:Padding(len(p))])
}
