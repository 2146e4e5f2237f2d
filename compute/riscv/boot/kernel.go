package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"

	"steadfast/fault"
)

// KernelMax bounds a kernel's file unpacked, and what it clears behind itself, in bytes.
const KernelMax = 256 << 20

// The header of an image. Linux, Documentation/arch/riscv/boot-image-header.rst.
const (
	imageTextOffset = 8
	imageSize       = 16
	imageFlags      = 24
	imageMagic      = 56
	imageHeaderSize = 64

	imageBigEndian = 1 // a flag
)

// The header of an EFI image that unpacks itself. Linux,
// drivers/firmware/efi/libstub/zboot-header.S.
const (
	zbootType        = 4
	zbootOffset      = 8
	zbootSize        = 12
	zbootCompression = 24
	zbootHeaderSize  = 56
)

// Kernel is an image to be started.
type Kernel struct {
	image  []byte
	offset uint64 // from a boundary of 2 MiB
	size   uint64 // bytes that it uses from its beginning on, those that it clears too
}

// ParseKernel takes a kernel's file: an Image, with or without an EFI stub, an EFI zboot
// image, and either of them compressed by gzip or zstd. It errs with fault.Invalid,
// and says what it is instead, if that can be seen.
func ParseKernel(file []byte) (*Kernel, error) {
	const layers = 3 // a packed file, of an image that unpacks itself
	for range layers + 1 {
		inner, packed, err := unpack(file)
		if err != nil {
			return nil, err
		}
		if !packed {
			return image(file)
		}
		file = inner
	}
	return nil, fault.New(fault.Invalid, "a kernel that is packed more than %d times", layers)
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// unpack takes one layer off a file, if there is one.
func unpack(file []byte) (inner []byte, packed bool, err error) {
	switch {
	case bytes.HasPrefix(file, gzipMagic):
		inner, err = gunzip(file)
	case bytes.HasPrefix(file, zstdMagic):
		inner, err = unzstd(file)
	case len(file) >= zbootHeaderSize && string(file[:2]) == "MZ" && string(file[zbootType:zbootOffset]) == "zimg":
		inner, err = payload(file)
	default:
		return nil, false, nil
	}
	return inner, true, err
}

func gunzip(p []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "unpacking the kernel")
	}
	r.Multistream(false) // a length may follow
	return all(r, KernelMax)
}

func unzstd(p []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(p), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(KernelMax))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "unpacking the kernel")
	}
	defer r.Close()
	return all(r, KernelMax)
}

// all reads at most so many bytes, and errs when there are more.
func all(r io.Reader, most int64) ([]byte, error) {
	p, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "unpacking the kernel")
	}
	if int64(len(p)) > most {
		return nil, fault.New(fault.Invalid, "a kernel of more than %d bytes unpacked", most)
	}
	return p, nil
}

// payload returns what an EFI zboot image has packed within.
func payload(file []byte) ([]byte, error) {
	le := binary.LittleEndian
	offset, size := uint64(le.Uint32(file[zbootOffset:])), uint64(le.Uint32(file[zbootSize:]))
	if offset > uint64(len(file)) || size > uint64(len(file))-offset {
		return nil, fault.New(fault.Invalid, "an EFI zboot kernel that is cut short: its payload ends at byte %d of %d", offset+size, len(file))
	}
	inner := file[offset:][:size]
	if !bytes.HasPrefix(inner, gzipMagic) && !bytes.HasPrefix(inner, zstdMagic) {
		name, _, _ := bytes.Cut(file[zbootCompression:zbootHeaderSize], []byte{0})
		return nil, fault.New(fault.Invalid, "an EFI zboot kernel packed by %q: gzip and zstd are known; give the Image within", name)
	}
	return inner, nil
}

// image takes an Image.
func image(p []byte) (*Kernel, error) {
	if len(p) < imageHeaderSize || string(p[imageMagic:][:4]) != "RSC\x05" {
		return nil, fault.New(fault.Invalid, "no riscv64 Linux kernel: %s", guess(p))
	}
	le := binary.LittleEndian
	k := &Kernel{image: p, offset: le.Uint64(p[imageTextOffset:]), size: max(uint64(len(p)), le.Uint64(p[imageSize:]))}
	switch {
	case le.Uint64(p[imageFlags:])&imageBigEndian != 0:
		return nil, fault.New(fault.Invalid, "a riscv kernel that is big-endian: the machine is little-endian")
	case k.offset%4096 != 0 || k.offset >= KernelMax || k.size > KernelMax:
		return nil, fault.New(fault.Invalid, "a riscv kernel of %d bytes at offset %#x: the header is damaged, or it needs more than %d bytes", k.size, k.offset, KernelMax)
	}
	return k, nil
}

// guess says what a file is that is no kernel for this machine.
func guess(p []byte) string {
	at := func(off int, s string) bool { return len(p) >= off+len(s) && string(p[off:][:len(s)]) == s }
	switch {
	case at(0x202, "HdrS"):
		return "this is one for x86"
	case at(imageMagic, "ARM\x64"):
		return "this is one for arm64"
	case at(0, "\x7fELF"):
		return "this is an ELF file (vmlinux?); give the Image of the same build"
	case at(0, "\xfd7zXZ"), at(0, "BZh"), at(0, "\x02\x21\x4c\x18"), at(0, "\x04\x22\x4d\x18"), at(0, "\x5d\x00\x00"):
		return "this is packed in a way that is not known; unpack it, or use gzip or zstd"
	case at(0, "MZ"):
		return "this is an EFI program without a kernel's header"
	default:
		return "the header's magic RSC\\x05 is missing"
	}
}
