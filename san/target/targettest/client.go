package targettest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"steadfast/iscsi"
)

// patience is how long a client waits for a PDU that must come.
const patience = 20 * time.Second

// Client is a raw iSCSI initiator for tests: it sends what it is told,
// right or wrong, one PDU at a time.
type Client struct {
	Conn  net.Conn
	ISID  iscsi.ISID
	CmdSN uint32 // of the next command
	ITT   uint32 // of the next task
	CID   uint16
	TSIH  uint16

	HeaderDigest, DataDigest bool
	// SpoilHeader and SpoilData make the next digest wrong.
	SpoilHeader, SpoilData bool

	// The newest numbers the target sent.
	StatSN, ExpCmdSN, MaxCmdSN uint32
}

// Dial connects to a portal.
func Dial(address string) (*Client, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Client{Conn: conn, ISID: iscsi.ISID{0x80, 0, 0, 1}, CmdSN: 1, ITT: 1}, nil
}

// Close drops the connection.
func (c *Client) Close() { _ = c.Conn.Close() }

// Send sends a PDU with the digests agreed on. The header's lengths are set.
func (c *Client) Send(h iscsi.Header, ahs, data []byte) error {
	h.SetAHSLength(len(ahs))
	h.SetDataLength(len(data))
	wire := append(h[:], ahs...)
	if c.HeaderDigest {
		d := iscsi.Digest(wire)
		if c.SpoilHeader {
			d, c.SpoilHeader = d+1, false
		}
		wire = binary.LittleEndian.AppendUint32(wire, d)
	}
	if len(data) > 0 {
		wire = append(wire, data...)
		wire = append(wire, make([]byte, iscsi.Padding(len(data)))...)
		if c.DataDigest {
			d := iscsi.DataDigest(data)
			if c.SpoilData {
				d, c.SpoilData = d+1, false
			}
			wire = binary.LittleEndian.AppendUint32(wire, d)
		}
	}
	_, err := c.Conn.Write(wire)
	return err
}

// Recv receives a PDU and checks its digests.
func (c *Client) Recv() (h iscsi.Header, data []byte, err error) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(patience))
	if _, err = io.ReadFull(c.Conn, h[:]); err != nil {
		return h, nil, err
	}
	if c.HeaderDigest {
		if err = c.checkDigest(iscsi.Digest(h[:])); err != nil {
			return h, nil, fmt.Errorf("header: %w", err)
		}
	}
	if n := h.DataLength(); n > 0 {
		data = make([]byte, n+iscsi.Padding(n))
		if _, err = io.ReadFull(c.Conn, data); err != nil {
			return h, nil, err
		}
		data = data[:n]
		if c.DataDigest {
			if err = c.checkDigest(iscsi.DataDigest(data)); err != nil {
				return h, nil, fmt.Errorf("data: %w", err)
			}
		}
	}
	c.StatSN, c.ExpCmdSN, c.MaxCmdSN = h.StatSN(), h.ExpCmdSN(), h.MaxCmdSN()
	return h, data, nil
}

func (c *Client) checkDigest(want uint32) error {
	var d [4]byte
	if _, err := io.ReadFull(c.Conn, d[:]); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint32(d[:]); got != want {
		return fmt.Errorf("digest %#x, want %#x", got, want)
	}
	return nil
}

// Login sends one login request with the given pairs, one per line, straight
// for the full feature phase, and returns the response's status and text.
func (c *Client) Login(pairs string) (iscsi.LoginStatus, string, error) {
	status, text, err := c.LoginStep(iscsi.StageOperational, iscsi.StageFullFeature, true, pairs)
	if err == nil && status == iscsi.LoginSuccess {
		c.HeaderDigest = strings.Contains(text, "HeaderDigest=CRC32C")
		c.DataDigest = strings.Contains(text, "DataDigest=CRC32C")
	}
	return status, text, err
}

// LoginStep sends one login request.
func (c *Client) LoginStep(csg, nsg iscsi.Stage, transit bool, pairs string) (iscsi.LoginStatus, string, error) {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLoginReq)
	h.SetImmediate()
	h.SetStages(transit, false, csg, nsg)
	h.SetISID(c.ISID)
	h.SetTSIH(c.TSIH)
	h.SetCID(c.CID)
	h.SetCmdSN(c.CmdSN)
	if err := c.Send(h, nil, []byte(strings.ReplaceAll(pairs, "\n", "\x00"))); err != nil {
		return 0, "", err
	}
	r, data, err := c.Recv()
	if err != nil {
		return 0, "", err
	}
	if r.Opcode() != iscsi.OpLoginResp {
		return 0, "", fmt.Errorf("%v in answer to a login", r.Opcode())
	}
	if r.TSIH() != 0 {
		c.TSIH = r.TSIH()
	}
	return r.LoginStatus(), strings.ReplaceAll(strings.TrimSuffix(string(data), "\x00"), "\x00", "\n"), nil
}

// Command returns a SCSI Command header with the next CmdSN and tag.
func (c *Client) Command(flags byte, length int, cdb ...byte) iscsi.Header {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpSCSICommand)
	h.SetFlags(flags | 1) // simple task
	h.SetInitiatorTag(c.ITT)
	h.SetExpectedLength(uint32(length))
	h.SetCmdSN(c.CmdSN)
	h.SetExpStatSN(c.StatSN + 1)
	copy(h.CDB(), cdb)
	c.ITT++
	c.CmdSN++
	return h
}

// Request returns the header of another numbered request.
func (c *Client) Request(op iscsi.Opcode) iscsi.Header {
	h := c.Command(iscsi.FlagFinal, 0)
	h.SetOpcode(op)
	h.SetFlags(iscsi.FlagFinal)
	return h
}

// DataOut returns a Data-Out header for a task.
func (c *Client) DataOut(itt, ttt, sn uint32, offset int, final bool) iscsi.Header {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpDataOut)
	if final {
		h.SetFlags(iscsi.FlagFinal)
	}
	h.SetInitiatorTag(itt)
	h.SetTargetTag(ttt)
	h.SetExpStatSN(c.StatSN + 1)
	h.SetDataSN(sn)
	h.SetBufferOffset(uint32(offset))
	return h
}

// Read10 returns the CDB of READ(10) in blocks.
func Read10(lba, n int) []byte { return rw10(0x28, lba, n) }

// Write10 returns the CDB of WRITE(10) in blocks.
func Write10(lba, n int) []byte { return rw10(0x2a, lba, n) }

func rw10(op byte, lba, n int) []byte {
	cdb := make([]byte, 10)
	cdb[0] = op
	binary.BigEndian.PutUint32(cdb[2:], uint32(lba))
	binary.BigEndian.PutUint16(cdb[7:], uint16(n))
	return cdb
}
