package iscsi

// Params are a session's and its connection's negotiated values. Lengths are
// bytes, times seconds. RFC 7143, 13.
type Params struct {
	HeaderDigest bool // CRC32C over headers
	DataDigest   bool // CRC32C over data segments

	MaxConnections      int
	InitialR2T          bool
	ImmediateData       bool
	MaxBurstLength      int
	FirstBurstLength    int
	DefaultTime2Wait    int
	DefaultTime2Retain  int
	MaxOutstandingR2T   int
	DataPDUInOrder      bool
	DataSequenceInOrder bool
	ErrorRecoveryLevel  int
	ProtocolLevel       int // RFC 7144

	// MaxSendLength is the peer's MaxRecvDataSegmentLength: the longest data
	// segment we may send. MaxRecvLength is our own, as declared.
	MaxSendLength int
	MaxRecvLength int
}

// DefaultParams returns the values that hold when nothing is negotiated.
func DefaultParams() Params {
	return Params{
		MaxConnections: 1, InitialR2T: true, ImmediateData: true,
		MaxBurstLength: 262144, FirstBurstLength: 65536,
		DefaultTime2Wait: 2, DefaultTime2Retain: 20, MaxOutstandingR2T: 1,
		DataPDUInOrder: true, DataSequenceInOrder: true,
		ProtocolLevel: 1, MaxSendLength: 8192, MaxRecvLength: 8192,
	}
}

// Limits of lengths. RFC 7143, 13.12 to 13.14.
const (
	MinSegmentLength = 512
	MaxSegmentLength = 1<<24 - 1
)
