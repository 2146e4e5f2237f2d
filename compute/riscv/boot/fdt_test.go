package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// virt is the machine with QEMU's memory map, as far as both have the same.
func virt() Machine {
	m := Machine{
		RAM:     Region{0x8000_0000, 512 << 20},
		PLIC:    Region{0x0c00_0000, 0x400_0000},
		Sources: 31,
		UART:    Device{Region{0x1000_0000, 0x100}, 10},
		RTC:     Device{Region{0x0010_1000, 0x1000}, 11},
	}
	for i := range uint64(8) {
		m.Virtio = append(m.Virtio, Device{Region{0x1000_1000 + 0x1000*i, 0x1000}, uint32(i + 1)})
	}
	return m
}

// parse takes a tree apart: a property's value by its path. It is a reader's view of
// the format, after the specification.
func parse(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	be := binary.BigEndian
	u32 := func(off uint32) uint32 { return be.Uint32(b[off:]) }
	if u32(0) != 0xd00dfeed || int(u32(4)) > len(b) || u32(20) != 17 || u32(24) != 16 || u32(28) != 0 {
		t.Fatalf("the header is % x", b[:40])
	}
	structs, strs, reserve := u32(8), u32(12), u32(16)
	if be.Uint64(b[reserve:])|be.Uint64(b[reserve+8:]) != 0 || reserve%8 != 0 || structs%4 != 0 || structs+u32(36) > u32(4) || strs+u32(32) > u32(4) {
		t.Fatal("the blocks are not where they should be")
	}
	text := func(off uint32) string {
		s, _, _ := bytes.Cut(b[off:], []byte{0})
		return string(s)
	}
	all := map[string][]byte{}
	var path []string
	for off := structs; ; {
		token := u32(off)
		off += 4
		switch token {
		case 1:
			name := text(off)
			path = append(path, name)
			off += uint32(len(name)+4) &^ 3
			all[strings.Join(path, "/")+"/"] = nil
		case 2:
			path = path[:len(path)-1]
		case 3:
			n := u32(off)
			all[strings.Join(path, "/")+"/"+text(strs+u32(off+4))] = b[off+8:][:n]
			off += 8 + (n+3)&^3
		case 9:
			if len(path) != 0 || off != structs+u32(36) {
				t.Fatal("the structure does not end where it should")
			}
			return all
		default:
			t.Fatalf("token %d at %d", token, off-4)
		}
	}
}

func mustTree(t testing.TB, m Machine, c Chosen) []byte {
	t.Helper()
	b, err := Tree(m, c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func cells(vs ...uint32) string {
	var p []byte
	for _, v := range vs {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return string(p)
}

func TestTree(t *testing.T) {
	seed := bytes.Repeat([]byte{1, 2, 3, 4}, 8)
	all := parse(t, mustTree(t, virt(), Chosen{Arguments: "console=ttyS0 root=/dev/vda", Initrd: Region{0x9000_0000, 0x1234}, Seed: seed}))
	got := map[string]string{}
	for k, v := range all {
		got[k] = string(v)
	}
	for k, want := range map[string]string{
		"/chosen/bootargs":                      "console=ttyS0 root=/dev/vda\x00",
		"/chosen/stdout-path":                   "/soc/serial@10000000\x00",
		"/chosen/linux,initrd-start":            cells(0, 0x9000_0000),
		"/chosen/linux,initrd-end":              cells(0, 0x9000_1234),
		"/chosen/rng-seed":                      string(seed),
		"/memory@80000000/reg":                  cells(0, 0x8000_0000, 0, 512<<20),
		"/cpus/timebase-frequency":              cells(10_000_000),
		"/cpus/cpu@0/riscv,isa":                 "rv64imafdc_zicboz_zicntr_zicsr_zifencei_zba_zbb_zbs_sstc\x00",
		"/cpus/cpu@0/riscv,isa-base":            "rv64i\x00",
		"/cpus/cpu@0/riscv,isa-extensions":      "i\x00m\x00a\x00f\x00d\x00c\x00zicboz\x00zicntr\x00zicsr\x00zifencei\x00zba\x00zbb\x00zbs\x00sstc\x00",
		"/cpus/cpu@0/riscv,cboz-block-size":     cells(64),
		"/soc/plic@c000000/interrupts-extended": cells(2, 11, 2, 9),
		"/soc/plic@c000000/riscv,ndev":          cells(31),
		"/soc/serial@10000000/interrupts":       cells(10),
		"/soc/virtio_mmio@10008000/reg":         cells(0, 0x1000_8000, 0, 0x1000),
		"/soc/virtio_mmio@10008000/interrupts":  cells(8),
	} {
		if diff := cmp.Diff(want, got[k]); diff != "" {
			t.Errorf("%s: %s", k, diff)
		}
	}
	bare := parse(t, mustTree(t, virt(), Chosen{}))
	for k := range bare {
		if strings.Contains(k, "initrd") || strings.Contains(k, "seed") {
			t.Errorf("%s without one", k)
		}
	}
}

func TestTreeIsTheSame(t *testing.T) {
	c := Chosen{Arguments: "quiet", Seed: make([]byte, 64)}
	if !bytes.Equal(mustTree(t, virt(), c), mustTree(t, virt(), c)) {
		t.Error("two trees of one machine differ")
	}
}

func TestTreeRefuses(t *testing.T) {
	for _, c := range []Chosen{
		{Arguments: strings.Repeat("x", 1024)}, {Arguments: "a\x00b"}, {Seed: make([]byte, 31)}, {Seed: make([]byte, 4097)},
	} {
		if _, err := Tree(virt(), c); err == nil {
			t.Errorf("%.20q with a seed of %d bytes is taken", c.Arguments, len(c.Seed))
		}
	}
	if _, err := Tree(virt(), Chosen{Arguments: strings.Repeat("x", 1023)}); err != nil {
		t.Error(err)
	}
}

// tool returns a program's path, or skips the test.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not here (apt-get install %s)", name, pkg)
	}
	return path
}

// The device tree compiler reads the tree, and has nothing to say against it.
func TestTreeByCompiler(t *testing.T) {
	dtc := tool(t, "dtc", "device-tree-compiler")
	file := filepath.Join(t.TempDir(), "tree.dtb")
	b := mustTree(t, virt(), Chosen{Arguments: "quiet", Initrd: Region{0x9000_0000, 1 << 20}, Seed: make([]byte, 32)})
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var source, said bytes.Buffer
	cmd := exec.Command(dtc, "-I", "dtb", "-O", "dts", file)
	cmd.Stdout, cmd.Stderr = &source, &said
	if err := cmd.Run(); err != nil || said.Len() != 0 {
		t.Fatalf("%v: %s", err, said.String())
	}
	for _, want := range []string{`compatible = "sifive,plic-1.0.0`, "interrupts-extended = <0x02 0x0b 0x02 0x09>;", `mmu-type = "riscv,sv39";`} {
		if !strings.Contains(source.String(), want) {
			t.Errorf("no %s in\n%s", want, source.String())
		}
	}
}

// What QEMU's machine with the same memory map says of a device, this one says, too.
// Not the same are handles, and what is listed here with its reason.
func TestTreeBesideQEMU(t *testing.T) {
	qemu := tool(t, "qemu-system-riscv64", "qemu-system-misc")
	file := filepath.Join(t.TempDir(), "virt.dtb")
	if said, err := exec.Command(qemu, "-M", "virt,dumpdtb="+file, "-m", "512", "-nographic").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	theirs := parse(t, b)
	m := virt()
	ours := parse(t, mustTree(t, m, Chosen{Arguments: "x"}))
	differs := []string{
		"/compatible", "/model", // names
		"/chosen/",                     // what is started, how
		"/cpus/cpu@0/riscv,isa",        // other extensions
		"/cpus/cpu@0/mmu-type",         // sv48
		"/soc/plic@c000000/reg",        // of the size of its contexts
		"/soc/plic@c000000/riscv,ndev", // more sources
		"phandle", "interrupt-parent",  // handles
		"/interrupts-extended",                // handles; the contexts are compared below
		"interrupt-controller/#address-cells", // dtc asks for it
	}
	compared := 0
	for _, k := range slices.Sorted(maps.Keys(ours)) {
		if slices.ContainsFunc(differs, func(s string) bool { return strings.Contains(k, s) || s == k }) {
			continue
		}
		v, ok := theirs[k]
		if !ok {
			if strings.Contains(k, "aliases") || strings.Contains(k, "riscv,isa") || strings.Contains(k, "riscv,cboz") {
				continue // newer than this QEMU
			}
			t.Errorf("%s is not in QEMU's", k)
			continue
		}
		compared++
		if diff := cmp.Diff(v, ours[k]); diff != "" {
			t.Errorf("%s: %s", k, diff)
		}
	}
	if compared < 50 {
		t.Errorf("only %d properties were compared", compared)
	}
	contexts := func(p []byte) (lines []uint32) {
		for ; len(p) >= 8; p = p[8:] {
			lines = append(lines, binary.BigEndian.Uint32(p[4:]))
		}
		return lines
	}
	k := fmt.Sprintf("/soc/plic@%x/interrupts-extended", m.PLIC.Base)
	if diff := cmp.Diff(contexts(theirs[k]), contexts(ours[k])); diff != "" {
		t.Errorf("the contexts of the controller: %s", diff)
	}
}
