package vmm

import (
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// What a filter sees: struct seccomp_data (linux/seccomp.h).
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16 // six, of 8 bytes each
)

// Answers of a filter. linux/seccomp.h
const (
	answerAllow   = 0x7fff0000
	answerErrno   = 0x00050000 // with the error in the lower half
	answerKill    = 0x80000000 // the process
	filterTSync   = 1          // SECCOMP_FILTER_FLAG_TSYNC
	setModeFilter = 1          // SECCOMP_SET_MODE_FILTER
)

// threadFlags are those with which the runtime, and the C library, make a thread; a clone
// without them would be a process, and one with any of spaceFlags in other namespaces.
const (
	threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	spaceFlags  = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_PTRACE | unix.CLONE_VFORK
)

// prSetVMA names a mapping; the runtime may.
const prSetVMA = 0x53564d41

// rule is a system call, and what is done about it.
type rule struct {
	number uintptr
	// when looks at an argument, if it is not nil; the call is allowed if it leads on.
	when []bpf.Instruction
	// errno is what a forbidden call fails with, 0: the process is killed.
	errno uint32
	// never: it is not allowed at all, but fails with errno.
	never bool
}

// Checks of one argument, the lower half of it. What does not lead on jumps over the
// instruction behind it, which allows the call.

// argument loads one.
func argument(i uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: dataArgs + 8*i, Size: 4} }

// without wants bits to be clear.
func without(i, bits uint32) []bpf.Instruction {
	return []bpf.Instruction{argument(i), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: bits, SkipTrue: 1}}
}

// masked wants the bits of a mask to be exactly so.
func masked(i, mask, want uint32) []bpf.Instruction {
	return []bpf.Instruction{argument(i), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: want, SkipTrue: 1}}
}

// is wants a value.
func is(i, want uint32) []bpf.Instruction { return masked(i, ^uint32(0), want) }

// oneOf wants one of a few.
func oneOf(i uint32, want ...uint32) []bpf.Instruction {
	list := []bpf.Instruction{argument(i)}
	for k, v := range want {
		list = append(list, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(want) - k)})
	}
	return append(list, bpf.Jump{Skip: 1})
}

// rules are the list of what the process may do: what a machine needs first, then what
// the runtime needs. What is not on it kills the process.
func rules(pid uint32) []rule {
	list := []rule{}
	for _, n := range append([]uintptr{
		// The machine: its descriptors.
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV,
		unix.SYS_FDATASYNC, unix.SYS_FSYNC, unix.SYS_FALLOCATE, unix.SYS_LSEEK, unix.SYS_FSTAT, unix.SYS_CLOSE,
		unix.SYS_RECVMSG, unix.SYS_GETSOCKOPT,
		unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_PPOLL,
		unix.SYS_GETRANDOM, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_CLOCK_GETRES,
		// The runtime: threads, memory, signals, its end.
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MREMAP, unix.SYS_BRK,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}, archCalls...) {
		list = append(list, rule{number: n})
	}
	fcntls := oneOf(1, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC)
	return append(list,
		rule{number: unix.SYS_FCNTL, when: fcntls, errno: uint32(unix.EPERM)},
		rule{number: unix.SYS_MMAP, when: without(2, unix.PROT_EXEC)},
		rule{number: unix.SYS_MPROTECT, when: without(2, unix.PROT_EXEC)},
		rule{number: unix.SYS_CLONE, when: masked(0, threadFlags|spaceFlags, threadFlags)},
		// The C library falls back to clone, whose flags can be looked at.
		rule{number: unix.SYS_CLONE3, never: true, errno: uint32(unix.ENOSYS)},
		rule{number: unix.SYS_TGKILL, when: is(0, pid)},
		rule{number: unix.SYS_KILL, when: is(0, pid)},
		rule{number: unix.SYS_PRCTL, when: is(0, prSetVMA), errno: uint32(unix.EPERM)},
	)
}

// filter is the program that judges each call of the process pid.
func filter(pid uint32) ([]bpf.RawInstruction, error) {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: answerKill},
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
	}
	for _, r := range rules(pid) {
		otherwise := bpf.RetConstant{Val: answerKill}
		if r.errno != 0 {
			otherwise.Val = answerErrno | r.errno
		}
		do := []bpf.Instruction{bpf.RetConstant{Val: answerAllow}}
		switch {
		case r.never:
			do = []bpf.Instruction{otherwise}
		case r.when != nil:
			do = append(append(append([]bpf.Instruction{}, r.when...), do...), otherwise)
		}
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(r.number), SkipTrue: uint8(len(do))})
		program = append(program, do...)
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{Val: answerKill}))
	return raw, fault.Wrap(fault.Internal, err, "the filter of system calls")
}

// installFilter installs the filter on all threads of this process, for good.
func installFilter() error {
	if auditArch == 0 {
		return fault.New(fault.Invalid, "there is no list of system calls for %s: no machine is run without", runtime.GOARCH)
	}
	raw, err := filter(uint32(unix.Getpid()))
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	// no_new_privs is the thread's, and goes to the others with the filter.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fault.Wrap(fault.Failed, err, "giving up privileges")
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, filterTSync, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fault.Wrap(fault.Failed, errno, "the filter of system calls")
	}
	if thread != 0 {
		return fault.New(fault.Failed, "the filter of system calls: thread %d has one of its own", thread)
	}
	return nil
}
