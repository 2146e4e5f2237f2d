package quorumio

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// A frame is
//
//	1 byte    version
//	1 byte    kind
//	4 bytes   length of the payload, big-endian
//	n bytes   payload
//
// A connection begins with a hello from who dialled, answered by a welcome; then
// raft's messages go one way, and something each second when there are none. On
// one for another protocol, what comes after the welcome is that protocol's.
const (
	wireVersion    = 1
	frameHeadBytes = 6

	// frameBytesMax bounds a frame: a snapshot is the largest, and a cluster's
	// state is small.
	frameBytesMax = 32 << 20
	helloBytesMax = 4 << 10
)

type frameKind uint8

const (
	frameHello   frameKind = 1
	frameWelcome frameKind = 2
	frameRaft    frameKind = 3
	frameAlive   frameKind = 4 // has no payload
)

// hello is what the two ends say of themselves. What the certificates say is not
// repeated.
type hello struct {
	To      uint64      `json:"to"` // number of who is meant
	Boot    quorum.Boot `json:"boot"`
	Address string      `json:"address"`           // where who speaks is reached
	Refused string      `json:"refused,omitempty"` // in a welcome: why it is none
}

func writeFrame(w io.Writer, kind frameKind, payload []byte) error {
	if len(payload) > frameBytesMax {
		return fault.New(fault.Limit, "a frame of %d bytes", len(payload))
	}
	head := [frameHeadBytes]byte{wireVersion, byte(kind)}
	binary.BigEndian.PutUint32(head[2:], uint32(len(payload)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

// readFrame reads a frame of one kind, of at most limit bytes. Fails with
// fault.Invalid when what comes is another thing.
func readFrame(r io.Reader, kind frameKind, limit int) ([]byte, error) {
	n, got, err := readHead(r, limit)
	if err == nil && got != kind {
		err = fault.New(fault.Invalid, "a frame of kind %d where %d belongs", got, kind)
	}
	if err != nil {
		return nil, err
	}
	return readPayload(r, n)
}

// readAny reads a frame of those that follow the hellos.
func readAny(r io.Reader, limit int) (frameKind, []byte, error) {
	n, kind, err := readHead(r, limit)
	if err == nil && kind != frameRaft && (kind != frameAlive || n > 0) {
		err = fault.New(fault.Invalid, "a frame of kind %d, %d bytes, after the hellos", kind, n)
	}
	if err != nil {
		return 0, nil, err
	}
	p, err := readPayload(r, n)
	return kind, p, err
}

func readHead(r io.Reader, limit int) (n uint32, kind frameKind, err error) {
	var head [frameHeadBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	n = binary.BigEndian.Uint32(head[2:])
	switch {
	case head[0] != wireVersion:
		return 0, 0, fault.New(fault.Invalid, "a frame of version %d; this is %d", head[0], wireVersion)
	case uint64(n) > uint64(limit):
		return 0, 0, fault.New(fault.Invalid, "a frame of %d bytes, the bound is %d", n, limit)
	}
	return n, frameKind(head[1]), nil
}

func readPayload(r io.Reader, n uint32) ([]byte, error) {
	// What is promised is not believed: memory grows with what arrives.
	if n <= 64<<10 {
		p := make([]byte, n)
		_, err := io.ReadFull(r, p)
		return p, err
	}
	p, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(p) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return p, err
}

func writeHello(w io.Writer, kind frameKind, h hello) error {
	p, err := json.Marshal(h)
	if err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	if err := writeFrame(b, kind, p); err != nil {
		return err
	}
	return b.Flush()
}

func readHello(r io.Reader, kind frameKind) (h hello, err error) {
	p, err := readFrame(r, kind, helloBytesMax)
	if err != nil {
		return h, err
	}
	return h, fault.Wrap(fault.Invalid, json.Unmarshal(p, &h), "a hello")
}

// decodeMessage reads a message that from sent to me. What would make raft panic
// by its mere form is refused here.
func decodeMessage(p []byte, from, me uint64) (*raftpb.Message, error) {
	msg := new(raftpb.Message)
	if err := proto.Unmarshal(p, msg); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "a message of raft")
	}
	if msg.GetFrom() != from || msg.GetTo() != me {
		return nil, fault.New(fault.Denied, "member %d sends a message of %d to %d", from, msg.GetFrom(), msg.GetTo())
	}
	switch msg.GetType() {
	case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow:
	case raftpb.MsgSnap:
		if msg.GetSnapshot().GetMetadata().GetConfState() == nil {
			return nil, fault.New(fault.Invalid, "a snapshot without a configuration")
		}
	case raftpb.MsgProp:
		// What has no form would be in everyone's log, and end everyone.
		if len(msg.GetEntries()) == 0 || slices.ContainsFunc(msg.GetEntries(), func(e *raftpb.Entry) bool { return !validProposal(e) }) {
			return nil, fault.New(fault.Invalid, "a proposal of another form")
		}
	default:
		return nil, fault.New(fault.Invalid, "a message of type %s, which nobody sends", msg.GetType())
	}
	for _, e := range msg.GetEntries() {
		if e == nil || !validEntry(e) {
			return nil, fault.New(fault.Invalid, "an entry of another form")
		}
	}
	return msg, nil
}

// validEntry tells whether raft can take e into its log.
func validEntry(e *raftpb.Entry) bool {
	switch e.GetType() {
	case raftpb.EntryNormal:
		return true
	case raftpb.EntryConfChange:
		return proto.Unmarshal(e.GetData(), new(raftpb.ConfChange)) == nil
	default:
		return false // we make no joint configurations
	}
}

// validProposal tells whether a machine can apply e.
func validProposal(e *raftpb.Entry) bool {
	data := e.GetData()
	if e.GetType() == raftpb.EntryConfChange {
		change := new(raftpb.ConfChange)
		if proto.Unmarshal(data, change) != nil {
			return false
		}
		data = change.GetContext()
	}
	_, _, err := decodeProposal(data)
	return err == nil && len(data) <= proposalHeadBytes+proposalBytesMax
}

// tag names a proposal: whose, of which life, and its place among those.
type tag struct {
	member uint64
	boot   quorum.Boot
	seq    uint64
}

const (
	proposalVersion   = 1
	proposalHeadBytes = 1 + 3*8
	// proposalBytesMax bounds one command: two of the inventory's largest values
	// in base64, and a little.
	proposalBytesMax = 1 << 20
)

// encodeProposal returns an entry's data: a version, the tag, the command.
func encodeProposal(t tag, command []byte) []byte {
	p := make([]byte, 0, proposalHeadBytes+len(command))
	p = append(p, proposalVersion)
	p = binary.BigEndian.AppendUint64(p, t.member)
	p = binary.BigEndian.AppendUint64(p, uint64(t.boot))
	p = binary.BigEndian.AppendUint64(p, t.seq)
	return append(p, command...)
}

func decodeProposal(p []byte) (t tag, c quorum.Command, err error) {
	if len(p) < proposalHeadBytes || p[0] != proposalVersion {
		return t, c, fault.New(fault.Corrupt, "an entry of the quorum's log is of another form")
	}
	t.member = binary.BigEndian.Uint64(p[1:])
	t.boot = quorum.Boot(binary.BigEndian.Uint64(p[9:]))
	t.seq = binary.BigEndian.Uint64(p[17:])
	c, err = quorum.DecodeCommand(p[proposalHeadBytes:])
	return t, c, err
}
