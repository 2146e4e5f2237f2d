package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"steadfast/test/testbed"
)

// The initiators that the server admits in the tools' part.
const (
	plainName  = "iqn.2026-11.io.steadfast.test:plain"
	nobodyName = "iqn.2026-11.io.steadfast.test:nobody" // not admitted
	// libiscsi's tools and QEMU call themselves by these names.
	toolName = "iqn.2007-10.com.github:sahlberg:libiscsi:"
	qemuName = "iqn.2008-11.org.linux-kvm"
)

const (
	lunData     = 1
	lunQcow     = 2 // write-cache on
	lunReadOnly = 3
)

// sizeData is small: every byte goes through an emulated block layer at least
// five times.
const sizeData = 64 << 20

// tools drives the server with libiscsi's commands, qemu-img and qemu-io.
func (r *run) tools() error {
	admitted := []testbed.Initiator{{Name: plainName}, {Name: qemuName}}
	for _, tool := range []string{"iscsi-ls", "iscsi-inq", "iscsi-readcapacity16", "iscsi-perf", "iscsi-swp"} {
		admitted = append(admitted, testbed.Initiator{Name: toolName + tool})
	}
	err := r.serve("tools", []testbed.Volume{
		{Name: "data", Size: sizeData, LUN: lunData},
		{Name: "qcow", Size: 128 << 20, LUN: lunQcow, WriteCache: true},
		{Name: "readonly", Size: 1 << 20, LUN: lunReadOnly, ReadOnly: true},
	}, admitted)
	if err != nil {
		return err
	}
	r.libiscsi()
	if err := r.qemuImg(); err != nil {
		return err
	}
	r.qemuIO()
	if err := r.restarts(); err != nil {
		return err
	}
	return r.chap()
}

// libiscsi runs the library's own commands.
func (r *run) libiscsi() {
	url := r.server.URL(0, lunData)
	portal := url[:strings.Index(url, "/iqn.")]
	r.step("iscsi-ls", expect{contains: testbed.Target}, "iscsi-ls", "-i", plainName, portal)
	r.step("iscsi-ls shows units", expect{contains: "Lun:1"}, "iscsi-ls", "-i", plainName, "-s", portal)
	v6 := r.server.URL(1, lunData)
	r.step("iscsi-ls over IPv6", expect{contains: testbed.Target}, "iscsi-ls", "-i", plainName, v6[:strings.Index(v6, "/iqn.")])
	r.step("iscsi-inq", expect{contains: "DIRECT_ACCESS"}, "iscsi-inq", "-i", plainName, url)
	for _, page := range []int{0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2} {
		r.step(fmt.Sprintf("iscsi-inq page %02x", page), expect{}, "iscsi-inq", "-i", plainName, "-e", "1", "-c", fmt.Sprint(page), url)
	}
	// Blocks of 512 bytes: the last is size/512 - 1.
	r.step("iscsi-readcapacity16", expect{contains: fmt.Sprint(sizeData/512 - 1)}, "iscsi-readcapacity16", url)
	r.step("iscsi-perf reads", expect{contains: "iops"}, "iscsi-perf", "-i", plainName, "-t", "2", "-m", "32", "-b", "8", "-r", url)
	if r.peer == "steadfast" {
		r.step("an unknown initiator sees no target", expect{lacks: testbed.Target}, "iscsi-ls", "-i", nobodyName, portal)
		r.step("an unknown initiator is let into none", expect{fails: true}, "iscsi-inq", "-i", nobodyName, url)
		r.step("a unit that is not mapped", expect{fails: true}, "iscsi-readcapacity16", r.server.URL(0, 77))
	}
}

// qemuImg copies random bytes to the volume and back, in both formats.
func (r *run) qemuImg() error {
	url, qcow := r.server.URL(0, lunData), r.server.URL(0, lunQcow)
	src, back := filepath.Join(r.dir, "src"), filepath.Join(r.dir, "back")
	want := make([]byte, sizeData)
	// The middle stays zero: thin volumes must give it back as such.
	for _, half := range [][]byte{want[:sizeData/3], want[2*sizeData/3:]} {
		if _, err := rand.Read(half); err != nil {
			return err
		}
	}
	if err := os.WriteFile(src, want, 0o600); err != nil {
		return err
	}
	r.step("qemu-img info", expect{contains: "virtual size"}, "qemu-img", "info", "-f", "raw", url)
	r.step("qemu-img convert to the volume", expect{}, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, url)
	r.step("qemu-img compare", expect{contains: "identical"}, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, url)
	if _, ok := r.step("qemu-img convert from the volume", expect{}, "qemu-img", "convert", "-f", "raw", "-O", "raw", url, back); ok {
		got, err := os.ReadFile(back)
		if err != nil {
			return err
		}
		if bytes.Equal(got, want) {
			r.ok("what came back is what went there")
		} else {
			r.fail("what came back is what went there", "the files differ")
		}
	}
	r.step("qemu-img create qcow2 on the volume", expect{}, "qemu-img", "create", "-f", "qcow2", qcow, "100M")
	r.step("qemu-img convert to qcow2", expect{}, "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", src, qcow)
	r.step("qemu-img check qcow2", expect{contains: "No errors"}, "qemu-img", "check", "-f", "qcow2", qcow)
	return nil
}

// qemuIO writes, zeroes and discards, and reads patterns back.
func (r *run) qemuIO() {
	url := r.server.URL(0, lunData)
	io := func(name string, want expect, commands ...string) {
		argv := []string{"qemu-io", "-f", "raw", "-d", "unmap", "-n"}
		for _, c := range commands {
			argv = append(argv, "-c", c)
		}
		want.lacks = "verification failed"
		r.step(name, want, append(argv, url)...)
	}
	io("qemu-io pattern", expect{contains: "read 1048576/1048576"}, "write -P 0xa5 1M 1M", "read -P 0xa5 1M 1M")
	io("qemu-io unaligned", expect{contains: "read 1536/1536"}, "write -P 0x5a 1049088 1536", "read -P 0x5a 1049088 1536",
		"read -P 0xa5 1048576 512", "read -P 0xa5 1050624 4096")
	io("qemu-io FUA", expect{contains: "read 4096/4096"}, "write -f -P 0x11 3M 4k", "flush", "read -P 0x11 3M 4k")
	io("qemu-io zeroes", expect{contains: "read 65536/65536"}, "write -P 0x22 4M 128k", "write -z 4M 64k", "read -P 0 4M 64k", "read -P 0x22 4259840 64k")
	io("qemu-io discard", expect{contains: "read 1048576/1048576"}, "write -P 0x33 8M 1M", "discard 8M 1M", "read -P 0 8M 1M")
	digest := fmt.Sprintf("driver=iscsi,transport=tcp,portal=127.0.0.1:%d,target=%s,lun=%d,header-digest=crc32c", r.port, testbed.Target, lunData)
	r.step("qemu-io with header digests", expect{contains: "read 65536/65536", lacks: "verification failed"}, "qemu-io", "--image-opts", "-n",
		"-c", "write -P 0x44 10M 64k", "-c", "read -P 0x44 10M 64k", digest)
	r.step("qemu-io refuses a write-protected unit", expect{fails: true}, "qemu-io", "-f", "raw", "-c", "write 0 4k", r.server.URL(0, lunReadOnly))
	r.step("qemu-io reads a write-protected unit", expect{contains: "read 4096/4096"}, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 4k", r.server.URL(0, lunReadOnly))
	io("qemu-io beyond the end", expect{fails: true}, fmt.Sprintf("read %d 4k", sizeData))
}

// chap logs in with right and wrong secrets.
func (r *run) chap() error {
	const user, secret = "tester", "a-secret-of-16-b"
	err := r.serve("chap", []testbed.Volume{{Name: "data", Size: sizeData, LUN: lunData}},
		[]testbed.Initiator{{Name: plainName, User: user, Secret: secret}})
	if err != nil {
		return err
	}
	with := func(credentials string) string {
		return strings.Replace(r.server.URL(0, lunData), "iscsi://", "iscsi://"+credentials+"@", 1)
	}
	r.step("CHAP, right secret", expect{contains: "DIRECT_ACCESS"}, "iscsi-inq", "-i", plainName, with(user+"%"+secret))
	r.step("CHAP, wrong secret", expect{fails: true}, "iscsi-inq", "-i", plainName, with(user+"%"+secret+"x"))
	r.step("CHAP, wrong user", expect{fails: true}, "iscsi-inq", "-i", plainName, with("else%"+secret))
	r.step("CHAP, no secret", expect{fails: true}, "iscsi-inq", "-i", plainName, r.server.URL(0, lunData))
	return nil
}
