package node

import (
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells systemd how the service is. sd_notify(3). Without a service
// manager it does nothing: the zero notifier is one.
type notifier struct {
	address string
	// watchdog is how often a sign of life is due; 0: never.
	watchdog time.Duration
}

// newNotifier reads what the service manager put into the environment.
func newNotifier(getenv func(string) string) notifier {
	n := notifier{address: getenv("NOTIFY_SOCKET")}
	if n.address == "" {
		return n
	}
	if n.address[0] == '@' { // an abstract socket; unix(7)
		n.address = "\x00" + n.address[1:]
	}
	// sd_watchdog_enabled(3): the timeout is for the process named, if any.
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n
	}
	if us, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		n.watchdog = time.Duration(us) * time.Microsecond / 2
	}
	return n
}

// send tells state, lines like READY=1. A manager that cannot be told is no
// reason to stop serving disks, so the error is only for the log.
func (n notifier) send(state string) error {
	if n.address == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
