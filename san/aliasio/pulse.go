package aliasio

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// tableOwner is NFT_TABLE_F_OWNER, which package unix lacks.
const tableOwner = 0x2

// openPulse makes the tables that go with this process, and returns the socket
// that owns them.
//
// What happens when a process is killed decides what its clients hear. The
// kernel closes its files, and from the moment when a connection is closed, it
// answers what the client still sends with a bare RST, which the gate must let
// pass. So the pulse has to end before the first connection does. Since Linux 4.3
// the files of a process that dies are released from the highest number down
// (close_files, then task_work_run, last in first out): the socket gets a number
// above all others, and its release waits until no packet sees the tables.
func (g *gate) openPulse(o Options) (int, error) {
	conn, sock, err := dialNFT(o.Namespace)
	if err != nil {
		return -1, err
	}
	defer func() { _ = conn.CloseLasting() }() // the copy keeps the socket
	if _, err := conn.ListTables(); err != nil {
		return -1, explain(err, "list the nftables tables")
	}
	for _, s := range g.sides {
		if s.perDevice {
			continue
		}
		table := &nftables.Table{Name: o.Table + "_pulse", Family: s.gate.Family}
		if err := ownTable(sock, table); err != nil {
			return -1, err
		}
		for _, h := range s.hooks {
			addChain(conn, table, h, "_pulse", atPulse, []rule{rule{}.marked(o.MarkGate, true).mark(o.MarkGate, false)})
		}
		if err := flush(conn, sock, netlinkMax); err != nil {
			return -1, explain(err, "make table "+table.Name)
		}
	}
	return highest(sock)
}

// highest copies a socket to a file descriptor above those that connections get.
func highest(sock *mdl.Conn) (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return -1, explain(err, "read the limit of open files")
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return -1, explain(err, "copy a socket")
	}
	// The kernel's table of files grows with the number: half a megabyte, no more.
	at := min(limit.Cur-1, 1<<16-1)
	high, failed := -1, error(nil)
	err = raw.Control(func(fd uintptr) {
		// Below, if others sit up there: as high as there is room.
		for ; high < 0 && at > uint64(fd); at -= 1 + at/16 {
			high, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, int(at))
		}
	})
	return high, explain(errors.Join(err, failed), "copy a socket")
}

// ownTable makes a table that goes with the socket, and that nobody else can
// change. The library has no word for the flag, so the message is written here.
func ownTable(sock *mdl.Conn, t *nftables.Table) error {
	attributes, err := mdl.MarshalAttributes([]mdl.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(t.Name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, tableOwner}},
	})
	if err != nil {
		return fmt.Errorf("write the message for table %s: %w", t.Name, err)
	}
	// struct nfgenmsg: family, version, resource (big endian). A batch is for nftables.
	batch := func(kind mdl.HeaderType) mdl.Message {
		return mdl.Message{
			Header: mdl.Header{Type: kind, Flags: mdl.Request},
			Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	table := mdl.Message{
		Header: mdl.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
			Flags: mdl.Request | mdl.Acknowledge | mdl.Create | mdl.Excl,
		},
		Data: append([]byte{byte(t.Family), unix.NFNETLINK_V0, 0, 0}, attributes...),
	}
	if err := sock.SetDeadline(time.Now().Add(netlinkMax)); err != nil {
		return explain(err, "set a deadline for nftables")
	}
	_, err = sock.SendMessages([]mdl.Message{batch(unix.NFNL_MSG_BATCH_BEGIN), table, batch(unix.NFNL_MSG_BATCH_END)})
	if err == nil {
		_, err = sock.Receive()
	}
	switch {
	// The list of tables could be read, so that this is not about who we are.
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		return fault.New(fault.Busy, "table %s has another owner: a node runs here already, end it first (%w)", t.Name, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.Failed, "this kernel's nftables knows no tables with an owner: Linux 5.12 is needed (%w)", err)
	}
	return explain(err, "make table "+t.Name)
}
