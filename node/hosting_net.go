package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/compute/host"
	"steadfast/compute/netswitch"
	"steadfast/compute/usernet"
	"steadfast/fault"
	"steadfast/node/config"
)

// switchPatience is how long a machine's start waits for the switch to let its card in, and
// to say what its MTU is. Later the card works all the same, with the usual one.
const switchPatience = time.Second

// portNameMax is what a switch takes as a port's name, in bytes.
const portNameMax = 64

// cards attaches machines' network cards to the networks that the host's configuration has.
type cards struct {
	host     string
	networks []config.Network
	log      *slog.Logger
	publish  func(*steadfastv1.Event)
}

// attach is host.Options.Attach. Fails with fault.NotFound for a network that this host does
// not have, and as netswitch.NewTap does.
func (c *cards) attach(ctx context.Context, machine string, card int, n inventory.Net) (host.Attachment, error) {
	for _, there := range c.networks {
		switch {
		case there.Name != n.Network:
		case there.Switch != "":
			return c.plug(ctx, there.Switch, machine, card)
		case there.Bridge != "":
			tap, err := netswitch.NewTap(c.cardName(machine, card), there.Bridge)
			if err != nil {
				return host.Attachment{}, err
			}
			return host.Attachment{Wire: tap, MTU: mtuOf(tap.MTU())}, nil
		default:
			network, err := usernet.New(usernet.Options{Large: true, Log: c.log.With("machine", machine)})
			if err != nil {
				return host.Attachment{}, err
			}
			return host.Attachment{Wire: network}, nil
		}
	}
	var names []string
	for _, there := range c.networks {
		names = append(names, there.Name)
	}
	return host.Attachment{}, fault.New(fault.NotFound, "the host %s has no network %q; it has %s: add a [[network]] to its configuration", c.host, n.Network, listed(names))
}

// plug attaches a card to a switch. One that is away is told of, and attached to when it is
// there.
func (c *cards) plug(ctx context.Context, socket, machine string, card int) (host.Attachment, error) {
	up, err := netswitch.NewUplink(netswitch.UplinkOptions{
		Socket: socket, Log: c.log, Hello: netswitch.Hello{Port: c.portName(machine, card), Machine: machine, Large: true},
	})
	if err != nil {
		return host.Attachment{}, err
	}
	wait, cancel := context.WithTimeout(ctx, switchPatience)
	defer cancel()
	for up.State().Attachments == 0 && wait.Err() == nil {
		select {
		case <-wait.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	s := up.State()
	if !s.Attached {
		why := "it has not answered yet"
		if s.Err != nil {
			why = s.Err.Error()
		}
		c.publish(&steadfastv1.Event{
			Severity: severityWarning, Kind: host.EventNetwork, Machine: machine,
			Text: fmt.Sprintf("machine %q: network card %d waits for the switch at %s: %s", machine, card, socket, why),
		})
	}
	return host.Attachment{Wire: up, MTU: mtuOf(s.MTU)}, nil
}

// mtuOf is an MTU as a card has it; 0, the usual one, for what none can have.
func mtuOf(bytes int) uint16 {
	if bytes <= 0 || bytes > 1<<16-1 {
		return 0
	}
	return uint16(bytes)
}

// portName names a card's port on a switch. The host is part of it: a machine that was taken
// over from a host which does not answer has its card on two ports, until that notices.
func (c *cards) portName(machine string, card int) string {
	name := fmt.Sprintf("%s/%s/%d", c.host, machine, card)
	if len(name) > portNameMax {
		return c.cardName(machine, card)
	}
	return name
}

// cardName is a name of an interface, of at most 15 bytes, that no other card of this
// machine's kernel has.
func (c *cards) cardName(machine string, card int) string {
	sum := sha256.Sum256([]byte(c.host + "/" + machine))
	return fmt.Sprintf("sf%s-%d", hex.EncodeToString(sum[:5]), card)
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
