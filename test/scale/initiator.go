package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// initiator is the least of an iSCSI initiator: login without CHAP, commands
// one at a time, logout. It is written from RFC 7143 alone and shares nothing
// with the target's codec, so that one mistake cannot hide the other.
type initiator struct {
	conn      net.Conn
	cmdSN     uint32
	expStatSN uint32
	itt       uint32
}

// Opcodes. RFC 7143, 11.2.1.2.
const (
	opCommand        = 0x01
	opLogin          = 0x43 // with the immediate bit
	opLogout         = 0x46 // with the immediate bit
	opNopIn          = 0x20
	opResponse       = 0x21
	opLoginResponse  = 0x23
	opDataIn         = 0x25
	opLogoutResponse = 0x26
	opAsync          = 0x32
)

const bhsSize = 48

// patience is the longest wait for any answer.
const patience = 30 * time.Second

// login opens a normal session with its own ISID. RFC 7143, 11.12.
func login(address, name, target string, isid uint32) (*initiator, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	i := &initiator{conn: conn, cmdSN: 1}
	text := "InitiatorName=" + name + "\x00SessionType=Normal\x00TargetName=" + target + "\x00" +
		"HeaderDigest=None\x00DataDigest=None\x00MaxConnections=1\x00ErrorRecoveryLevel=0\x00"
	var bhs [bhsSize]byte
	bhs[0] = opLogin
	bhs[1] = 0x80 | 1<<2 | 3 // transit from operational negotiation to full feature
	// ISID of the "random" kind (10b): three bytes of number, two of qualifier.
	binary.BigEndian.PutUint32(bhs[8:], 0x80<<24|isid>>8)
	binary.BigEndian.PutUint16(bhs[12:], uint16(isid&0xff))
	binary.BigEndian.PutUint32(bhs[24:], i.cmdSN)
	if err := i.send(bhs, []byte(text)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	for {
		got, _, err := i.receive()
		switch {
		case err != nil:
			return nil, errors.Join(fmt.Errorf("login: %w", err), conn.Close())
		case got[0]&0x3f != opLoginResponse:
			return nil, errors.Join(fmt.Errorf("login answered with opcode %#x", got[0]), conn.Close())
		case got[36] != 0:
			return nil, errors.Join(fmt.Errorf("login refused: %02x/%02x", got[36], got[37]), conn.Close())
		}
		i.expStatSN = binary.BigEndian.Uint32(got[24:]) + 1
		if got[1]&0x80 != 0 && got[1]&3 == 3 {
			return i, nil
		}
		// More to say: an empty request asks for the next stage again.
		bhs[14], bhs[15] = got[14], got[15]
		binary.BigEndian.PutUint32(bhs[28:], i.expStatSN)
		if err := i.send(bhs, nil); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
}

// send writes a PDU; bhs' data length is filled in. RFC 7143, 11.2.
func (i *initiator) send(bhs [bhsSize]byte, data []byte) error {
	n := len(data)
	bhs[5], bhs[6], bhs[7] = byte(n>>16), byte(n>>8), byte(n)
	pdu := append(bhs[:], data...)
	pdu = append(pdu, make([]byte, -n&3)...)
	if err := i.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := i.conn.Write(pdu)
	return err
}

// receive reads a PDU.
func (i *initiator) receive() (bhs [bhsSize]byte, data []byte, err error) {
	if _, err = io.ReadFull(i.conn, bhs[:]); err != nil {
		return bhs, nil, err
	}
	n := int(bhs[5])<<16 | int(bhs[6])<<8 | int(bhs[7])
	data = make([]byte, (n+3)&^3+int(bhs[4])*4)
	_, err = io.ReadFull(i.conn, data)
	return bhs, data[:n], err
}

// command sends a SCSI command that reads at most n bytes and waits for its
// status. RFC 7143, 11.3 and 11.7.
func (i *initiator) command(lun int, cdb []byte, n uint32) (status byte, err error) {
	i.itt++
	var bhs [bhsSize]byte
	bhs[0], bhs[1] = opCommand, 0x80|1 // final, simple task
	if n > 0 {
		bhs[1] |= 0x40
	}
	// LUNs past 255 are addressed flat. SAM-5, 4.7.
	bhs[8], bhs[9] = byte(lun>>8), byte(lun)
	if lun > 255 {
		bhs[8] |= 0x40
	}
	binary.BigEndian.PutUint32(bhs[16:], i.itt)
	binary.BigEndian.PutUint32(bhs[20:], n)
	binary.BigEndian.PutUint32(bhs[24:], i.cmdSN)
	binary.BigEndian.PutUint32(bhs[28:], i.expStatSN)
	copy(bhs[32:], cdb)
	i.cmdSN++
	if err := i.send(bhs, nil); err != nil {
		return 0, err
	}
	for {
		got, _, err := i.receive()
		if err != nil {
			return 0, err
		}
		op := got[0] & 0x3f
		switch {
		case op == opResponse, op == opDataIn && got[1]&1 != 0:
			i.expStatSN = binary.BigEndian.Uint32(got[24:]) + 1
			return got[3], nil
		case op == opDataIn, op == opNopIn, op == opAsync:
		default:
			return 0, fmt.Errorf("command answered with opcode %#x", got[0])
		}
	}
}

// ready asks until the unit has told its unit attentions, then reads a block.
func (i *initiator) ready(lun int) error {
	testUnitReady := make([]byte, 6)
	for try := 0; ; try++ {
		status, err := i.command(lun, testUnitReady, 0)
		switch {
		case err != nil:
			return err
		case status == 0:
			read10 := []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}
			if status, err = i.command(lun, read10, 4096); err != nil || status != 0 {
				return errors.Join(fmt.Errorf("read of LUN %d: status %#x", lun, status), err)
			}
			return nil
		case try == 8:
			return fmt.Errorf("LUN %d is not ready: status %#x", lun, status)
		}
	}
}

// logout closes the session as it should be. RFC 7143, 11.14.
func (i *initiator) logout() error {
	var bhs [bhsSize]byte
	bhs[0], bhs[1] = opLogout, 0x80
	binary.BigEndian.PutUint32(bhs[24:], i.cmdSN)
	binary.BigEndian.PutUint32(bhs[28:], i.expStatSN)
	if err := i.send(bhs, nil); err != nil {
		return errors.Join(err, i.conn.Close())
	}
	for {
		got, _, err := i.receive()
		if err != nil {
			return errors.Join(fmt.Errorf("logout: %w", err), i.conn.Close())
		}
		if got[0]&0x3f == opLogoutResponse {
			return i.conn.Close()
		}
	}
}

// vanish closes the connection and says nothing, as a dead host would after
// its network noticed.
func (i *initiator) vanish() error { return i.conn.Close() }
