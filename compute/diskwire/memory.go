package diskwire

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// socketBytes is room for more packets than there are requests. A socket that is full makes
// its sender wait, and loses nothing.
const socketBytes = 256 << 10

// share makes a memory of so many slots that cannot change its size.
func share(slots int) (*os.File, error) {
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fault.Wrap(fault.Limit, err, "memory to share with a machine's process")
	}
	f := os.NewFile(uintptr(fd), "disk memory")
	if err = f.Truncate(int64(slots) * SlotBytes); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Limit, err, "memory to share with a machine's process"), f.Close())
	}
	return f, nil
}

// mapped maps a shared memory and tells how many slots it has. Fails with fault.Invalid
// for what is none.
func mapped(f *os.File) (mem []byte, slots int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, 0, fault.Wrap(fault.Invalid, err, "a disk's memory")
	}
	if st.Size <= 0 || st.Size%SlotBytes != 0 || st.Size > SlotsMax*SlotBytes {
		return nil, 0, fault.New(fault.Invalid, "a disk's memory of %d bytes: at most %d slots of %d", st.Size, SlotsMax, SlotBytes)
	}
	mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, 0, fault.Wrap(fault.Limit, err, "mapping a disk's memory")
	}
	return mem, int(st.Size / SlotBytes), nil
}

// sockets makes a pair of sockets that wait without a thread.
func sockets() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Limit, err, "a pair of sockets")
	}
	for _, fd := range fds {
		// The kernel takes as much of it as it allows; none is needed.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBytes)
	}
	return os.NewFile(uintptr(fds[0]), "disk server"), os.NewFile(uintptr(fds[1]), "disk client"), nil
}

// slot is the memory of one.
func slot(mem []byte, i int) []byte { return mem[i*SlotBytes : (i+1)*SlotBytes : (i+1)*SlotBytes] }
