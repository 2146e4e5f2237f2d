// Package bridge is what an Ethernet switch decides: for each frame, which ports it goes out
// of. It learns where stations are from the frames that they send, and from nothing else
// (IEEE 802.1D-2004, 7.7 to 7.9). It does no I/O and has no clock; package netswitch has the
// sockets.
//
// # A station that moves
//
// Each frame says where its sender is now. The first one that comes from another port than
// before moves the station there at once: so a machine that goes on on another host is found
// as soon as it, or its host in its place (Announcement), has sent one frame. What was on its
// way to the old port is lost.
//
// # Frames
//
// They are without check sequence. Ordinary ones have at most MTU bytes after the header and
// one VLAN tag. A port that is made Large also sends and takes whole TCP segments over IPv4 of
// up to that protocol's most, checksums right: cards that cut or take them are behind it
// (virtio.NetFrame). Between two such ports they cross as they are; for any other, Cut makes
// ordinary ones of them. VLAN tags are carried, and mean nothing here.
//
// # What it is not
//
// There is no spanning tree: two ways between the same two switches are a storm. Nothing
// keeps a station from sending in the name of another.
//
// # What is trusted
//
// No frame. A port fills at most PortStationsMax places of the table, so that the stations of
// others are still learnt; when it is full, frames to who is not in it go everywhere.
package bridge

import (
	"encoding/binary"
	"slices"
	"time"

	"steadfast/compute/virtio"
)

// Bounds.
const (
	// StationsMax is how many stations are known at a time, and PortStationsMax how many of
	// them at one port.
	StationsMax     = 4096
	PortStationsMax = 1024
	// Ageing is how long a station is known that sends nothing (IEEE 802.1D-2004, 7.9.2,
	// table 7-5).
	Ageing = 300 * time.Second
	// HeaderBytes is Ethernet's header, and the least that is a frame here: cards that are
	// none do not pad.
	HeaderBytes = 14
	// tagBytes is a VLAN tag's length.
	tagBytes = 4
	// FrameMax is the longest frame: tagged, with IPv4's longest packet.
	FrameMax = HeaderBytes + tagBytes + 65535
	// MTUDefault is Ethernet's.
	MTUDefault = 1500
)

// fresh is how old what is known of a station gets before its next frame is noted: it need
// not be at each.
const fresh = time.Second

// Instant is a time since the switch began, in nanoseconds.
type Instant int64

// Port is a port's number.
type Port int

// MAC is a station's link address.
type MAC [6]byte

// group tells whether it is an address of several stations (IEEE 802, 8.2.2).
func (m MAC) group() bool { return m[0]&1 != 0 }

// reserved tells whether it is one of those that no bridge passes on: of protocols between it
// and its neighbor (IEEE 802.1D-2004, 7.12.6, table 7-10).
func (m MAC) reserved() bool {
	return [5]byte(m[:5]) == [5]byte{0x01, 0x80, 0xc2, 0, 0} && m[5] < 16
}

// Counters are what came in at a port.
type Counters struct {
	Frames    uint64 `json:"frames"` // all, also those below
	Bytes     uint64 `json:"bytes"`
	Runts     uint64 `json:"runts"`      // dropped: shorter than a header
	Oversized uint64 `json:"oversized"`  // dropped: longer than the MTU, and no segment that the port may send
	BadSource uint64 `json:"bad_source"` // dropped: from a group, or from nobody
	Filtered  uint64 `json:"filtered"`   // ended here: for a station at the same port, or for the switch itself
	Flooded   uint64 `json:"flooded"`    // to a station that is not known
	Unlearnt  uint64 `json:"unlearnt"`   // whose sender found no place in the table
	MovedTo   uint64 `json:"moved_to"`   // stations that were at another port before
}

// Station is who is known.
type Station struct {
	MAC  MAC
	Port Port
	// Age is how long ago it has sent something, to a second.
	Age time.Duration
}

// station is where one is.
type station struct {
	port Port
	seen Instant
}

// port is a port that is in use.
type port struct {
	large    bool
	stations int // in the table
	counters Counters
}

// Bridge is a switch's table and ports. Its methods are one caller's at a time.
type Bridge struct {
	mtu   int
	ports map[Port]*port
	order []Port // the ports, for floods
	table map[MAC]station
	swept Instant
}

// New makes a switch without ports. mtu is in bytes.
func New(mtu int) *Bridge {
	return &Bridge{mtu: mtu, ports: map[Port]*port{}, table: map[MAC]station{}}
}

// Add puts a port in use. A port of a number that is in use is taken out first.
func (b *Bridge) Add(p Port, large bool) {
	b.Remove(p)
	b.ports[p] = &port{large: large}
	b.order = append(b.order, p)
}

// Remove takes a port out, and forgets the stations at it: frames for them go everywhere
// until they are heard of elsewhere.
func (b *Bridge) Remove(p Port) {
	if b.ports[p] == nil {
		return
	}
	for mac, s := range b.table {
		if s.port == p {
			delete(b.table, mac)
		}
	}
	delete(b.ports, p)
	b.order = slices.DeleteFunc(b.order, func(o Port) bool { return o == p })
}

// Frame takes a frame that came in at a port, and appends to out the ports that it is to go
// out of: never that one.
func (b *Bridge) Frame(now Instant, from Port, frame []byte, out []Port) []Port {
	p := b.ports[from]
	if p == nil {
		return out
	}
	p.counters.Frames++
	p.counters.Bytes += uint64(len(frame))
	if len(frame) < HeaderBytes {
		p.counters.Runts++
		return out
	}
	if len(frame) > ordinary(b.mtu) && !(p.large && virtio.WholeTCP4(frame)) {
		p.counters.Oversized++
		return out
	}
	to, source := MAC(frame[:6]), MAC(frame[6:12])
	if source.group() || source == (MAC{}) {
		p.counters.BadSource++
		return out
	}
	b.learn(now, from, p, source)
	if to.reserved() {
		p.counters.Filtered++
		return out
	}
	if !to.group() {
		if s, ok := b.find(now, to); ok {
			if s.port == from {
				p.counters.Filtered++
				return out
			}
			return append(out, s.port)
		}
		p.counters.Flooded++
	}
	for _, o := range b.order {
		if o != from {
			out = append(out, o)
		}
	}
	return out
}

// ordinary is the longest frame that is no large segment.
func ordinary(mtu int) int { return mtu + HeaderBytes + tagBytes }

// find returns where a station is, if it is known and has been heard of.
func (b *Bridge) find(now Instant, mac MAC) (station, bool) {
	s, ok := b.table[mac]
	if ok && now-s.seen > Instant(Ageing) {
		b.forget(mac, s)
		return s, false
	}
	return s, ok
}

// learn notes where a frame's sender is.
func (b *Bridge) learn(now Instant, from Port, p *port, mac MAC) {
	s, known := b.find(now, mac)
	switch {
	case known && s.port == from && now-s.seen < Instant(fresh):
		return
	case known && s.port != from:
		p.counters.MovedTo++
		b.forget(mac, s)
		known = false
	}
	if !known {
		if len(b.table) >= StationsMax || p.stations >= PortStationsMax {
			b.sweep(now)
		}
		if len(b.table) >= StationsMax || p.stations >= PortStationsMax {
			p.counters.Unlearnt++
			return
		}
		p.stations++
	}
	b.table[mac] = station{from, now}
}

func (b *Bridge) forget(mac MAC, s station) {
	delete(b.table, mac)
	if p := b.ports[s.port]; p != nil {
		p.stations--
	}
}

// sweep forgets who has grown old: at most once a second, as a station that finds no place
// could have it done at each of its frames.
func (b *Bridge) sweep(now Instant) {
	if b.swept != 0 && now-b.swept < Instant(fresh) {
		return
	}
	b.swept = now
	for mac, s := range b.table {
		if now-s.seen > Instant(Ageing) {
			b.forget(mac, s)
		}
	}
}

// Stations are those that are known, in the order of their addresses.
func (b *Bridge) Stations(now Instant) []Station {
	all := make([]Station, 0, len(b.table))
	for mac, s := range b.table {
		if now-s.seen <= Instant(Ageing) {
			all = append(all, Station{mac, s.port, time.Duration(now - s.seen)})
		}
	}
	slices.SortFunc(all, func(x, y Station) int { return slices.Compare(x.MAC[:], y.MAC[:]) })
	return all
}

// Counters are those of a port; the zero value of one that is not in use.
func (b *Bridge) Counters(p Port) Counters {
	if b.ports[p] == nil {
		return Counters{}
	}
	return b.ports[p].counters
}

// Announcement is a frame that a host sends in the name of a machine that it runs from now
// on, before that says anything itself: all switches on its way learn where the station is. It
// is a reverse ARP request (RFC 903), which names the station by its link address alone, so
// that nobody need know the address that its guest has, and which nobody answers today.
func Announcement(mac MAC) []byte {
	f := make([]byte, 60) // Ethernet's least, without the check sequence
	copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(f[6:], mac[:])
	be := binary.BigEndian
	be.PutUint16(f[12:], 0x8035)
	be.PutUint16(f[14:], 1)      // Ethernet
	be.PutUint16(f[16:], 0x0800) // IPv4
	f[18], f[19] = 6, 4
	be.PutUint16(f[20:], 3) // request reverse
	copy(f[22:], mac[:])
	copy(f[32:], mac[:])
	return f
}
