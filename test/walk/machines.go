package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// wires makes the networks, bridges in a box that nobody hurts, and the router on one of them,
// which keeps an address for the machine as the page says.
const wires = `set -e
for n in san lan; do ip link add $n type bridge forward_delay 0; ip link set $n up; done
ip address add 192.0.2.1/24 dev lan
cat >/etc/udhcpd.conf <<END
start 192.0.2.20
end 192.0.2.20
interface lan
lease_file /run/leases
option subnet 255.255.255.0
static_lease 02:53:46:00:00:20 192.0.2.20
END
touch /run/leases
busybox udhcpd -f /etc/udhcpd.conf </dev/null >/dev/null 2>&1 &
`

// addresses are the boxes', as the page has them.
var addresses = map[string][2]string{"a": {"10.0.0.1/24", "192.0.2.11/24"}, "b": {"10.0.0.2/24", "192.0.2.12/24"}, "w": {"10.0.0.3/24", "192.0.2.13/24"}}

// scpScript stands for scp: it asks the box at the address, which listens for that.
const scpScript = `#!/bin/bash
# scp FILE root@ADDRESS:[PATH], to a listener in the other box.
to=${2#root@}
exec /usr/bin/env python3 - "$1" "${to%%:*}" "${to#*:}" <<'END'
import os, socket, sys
file, host, path = sys.argv[1:]
s = socket.create_connection((host, 22), 10)
s.sendall((os.path.join(path or "/root", os.path.basename(file)) + "\n").encode() + open(file, "rb").read())
s.shutdown(socket.SHUT_WR)
sys.exit(0 if s.recv(2) == b"ok" else 1)
END
`

// sshdScript stands for the other end of it.
const sshdScript = `
import os, socket
s = socket.create_server(("", 22))
while True:
    c, _ = s.accept()
    data = b""
    while part := c.recv(65536): data += part
    path, _, content = data.partition(b"\n")
    with open(path, "wb") as f: f.write(content)
    c.sendall(b"ok"); c.close()
`

// onMachines types the second part on three boxes. What the page takes as given is made here:
// the networks, a drive of each node, the router with its DHCP, and the package in /root.
func (r *run) onMachines(ctx context.Context) error {
	if _, err := os.Stat(r.deb); err != nil {
		return fmt.Errorf("%w: make deb", err)
	}
	defer func() {
		for _, d := range r.drives {
			_ = d.Close() // nothing was written by it
		}
	}()
	net, err := newBox(r.dir, "net", "")
	if err != nil {
		return err
	}
	defer net.close()
	if out, err := net.command("bash", "-c", wires); err != nil {
		return fmt.Errorf("networks: %w: %s", err, out)
	}
	at, boxes := map[string]*terminal{}, map[string]*box{}
	for _, name := range []string{"a", "b", "w"} {
		b, err := r.machine(net, name)
		if err != nil {
			return err
		}
		defer b.close()
		t, err := b.terminal()
		if err != nil {
			return err
		}
		defer t.close()
		at[name], boxes[name] = t, b
	}
	if err := r.follow(ctx, onThree, at); err != nil {
		for _, name := range []string{"a", "b", "w"} {
			r.tellLogs(boxes[name], "/var/log/steadfast*.log")
		}
		return err
	}
	return nil
}

// machine makes a box with its networks, its drive and its stand-ins.
func (r *run) machine(net *box, name string) (*box, error) {
	var disk string
	if name != "w" {
		file := filepath.Join(r.dir, name+".disk")
		if err := here("truncate", "-s", "4G", file); err != nil {
			return nil, err
		}
		out, err := output("losetup", "--find", "--show", file)
		if err != nil {
			return nil, fmt.Errorf("a drive for box %s: %w", name, err)
		}
		disk = strings.TrimSpace(out)
		held, err := os.Open(disk)
		if err != nil {
			return nil, err
		}
		r.drives = append(r.drives, held)
		// Detached, it goes with the last who has it open: this process, however that ends.
		if err := here("losetup", "--detach", disk); err != nil {
			return nil, err
		}
	}
	b, err := newBox(r.dir, name, disk)
	if err != nil {
		return nil, err
	}
	for path, text := range map[string]string{"/usr/local/bin/systemctl": systemctlScript, "/usr/local/bin/scp": scpScript} {
		if err := b.install(path, text); err != nil {
			return nil, err
		}
	}
	if out, err := b.command("bash", "-c", "setsid python3 -c \"$0\" </dev/null >/dev/null 2>&1 &", sshdScript); err != nil {
		return nil, fmt.Errorf("scp's other end: %w: %s", err, out)
	}
	for i, network := range []string{"san", "lan"} {
		link := map[string]string{"san": "san", "lan": "eno1"}[network]
		// ip finds the box by its process as this computer counts, so only the network is entered.
		if err := here("nsenter", "--target", strconv.Itoa(net.pid), "--net", "ip", "link", "add", name+"-"+network, "master", network,
			"type", "veth", "peer", "name", link, "netns", strconv.Itoa(b.pid)); err != nil {
			return nil, err
		}
		if err := here("nsenter", "--target", strconv.Itoa(net.pid), "--net", "ip", "link", "set", name+"-"+network, "up"); err != nil {
			return nil, err
		}
		set := "ip link set san up && ip address add " + addresses[name][i] + " dev san"
		if network == "lan" {
			set = "ip link add br0 type bridge forward_delay 0 && ip link set eno1 master br0 up && ip link set br0 up && ip address add " + addresses[name][i] + " dev br0"
		}
		if out, err := b.command("bash", "-c", set); err != nil {
			return nil, fmt.Errorf("network %s of box %s: %w: %s", network, name, err, out)
		}
	}
	if err := b.copy(r.deb, "/root/steadfast.deb", "0644"); err != nil {
		return nil, err
	}
	return b, nil
}
