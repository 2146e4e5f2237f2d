package testbed

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Shape bounds what leaves by an interface, as a slower link would.
type Shape struct {
	BytesPerSecond uint64
	// BurstBytes may leave at once after a pause. It is the grain of the shaping:
	// what is smaller does not feel the rate, and with less than the kernel's
	// timer lets through at a time the rate is not reached.
	BurstBytes uint32
	// QueueBytes wait for their turn; more is dropped.
	QueueBytes uint32
}

// gsoMost is what TCP gives an interface at a time without a bound of its own, in bytes.
const gsoMost = 64 << 10

// Shape has a token bucket (tbf) before an interface of the namespace, in place
// of the one before. What comes in by it is not bounded: shape the other end.
func (s *Space) Shape(link string, shape Shape) error {
	return s.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("interface %s: %w", link, err)
		}
		// A network card cuts what TCP gives it into packets; here tbf would, of what
		// is larger than its bucket, at a processor's cost that no machine with a card
		// has. So TCP gives it less: a tenth is left for the packets' headers.
		if err := netlink.LinkSetGSOMaxSize(l, int(min(shape.BurstBytes/10*9, gsoMost))); err != nil {
			return fmt.Errorf("bound what %s is given at a time: %w", link, err)
		}
		err = netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       shape.BytesPerSecond,
			Limit:      shape.QueueBytes,
			Buffer:     netlink.Xmittime(shape.BytesPerSecond, shape.BurstBytes),
		})
		if err != nil {
			return fmt.Errorf("shape %s by tbf (kernel module sch_tbf): %w", link, err)
		}
		return nil
	})
}
