package main

import (
	"os"
	"path/filepath"
	"strings"
)

// The Linux client with several paths: it logs in at each node's own portal, not
// at the alias, and dm-multipath takes the path that the nodes call active. Its
// settings are those of docs/clients/linux.md.

// multipathClient is the client's name.
const multipathClient = "multipath"

// multipathConf is what the guest's multipathd is told.
const multipathConf = "test/pair/guest/multipath.conf"

// multipathISCSI is openISCSI for several paths: nobody tells an initiator that
// uses a node's own portal of that node's end, so it asks more often.
var multipathISCSI = []string{
	"node.startup = manual",
	"node.session.timeo.replacement_timeout = 5",
	"node.conn[0].timeo.noop_out_interval = 2",
	"node.conn[0].timeo.noop_out_timeout = 2",
	"node.session.iscsi.DefaultTime2Wait = 0",
}

// multipathItems are what the guest has besides: multipath-tools, and udev, which
// tells multipathd of devices.
func multipathItems() []string {
	items := []string{multipathConf + "=/etc/multipath.conf", "multipath", "multipathd", "dmsetup", "udevadm"}
	// What ends a thread of multipathd needs it, and no program is linked to it.
	files, _ := filepath.Glob("/lib/*/libgcc_s.so.1") // the pattern is a good one
	files = append(files,
		"/lib/udev/scsi_id",
		"/lib/multipath/libchecktur.so", "/lib/multipath/libprioalua.so", "/lib/multipath/libprioconst.so", "/lib/multipath/libpriosysfs.so",
		"/lib/udev/rules.d/50-udev-default.rules", "/lib/udev/rules.d/55-dm.rules", "/lib/udev/rules.d/56-dm-mpath.rules",
		"/lib/udev/rules.d/60-multipath.rules", "/lib/udev/rules.d/60-persistent-storage.rules",
		"/lib/udev/rules.d/60-persistent-storage-dm.rules", "/lib/udev/rules.d/95-dm-notify.rules",
	)
	for _, path := range files {
		if _, err := os.Stat(path); err == nil { // a newer release may lack one, or have it under /usr
			items = append(items, path+"="+path)
		}
	}
	return items
}

// ownPortals are those that stay with their node.
func ownPortals() string {
	return strings.Join([]string{address(NodeA, front) + ":3260", address(NodeB, front) + ":3260"}, ",")
}
