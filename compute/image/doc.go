// Package image makes, keeps and changes the images that machines boot: a kernel, an
// initial RAM disk and a disk with Debian's root filesystem, and a manifest of what
// they are.
//
// # How an image is built
//
//	mirror --apt--> packages --unpack--> tree --mke2fs--> disk --second stage--> disk
//	                       \--> kernel, modules --> initrd        (in a machine)
//
// apt of this host fetches the packages and checks their signatures; which mirror, this
// host's apt configuration says. They are unpacked here, without root: owners and modes
// are written down beside the tree and set in the filesystem afterwards (debugfs), so no
// namespace and no fakeroot is needed. dpkg's database is written as dpkg itself leaves
// it after "unpack". What the packages want to run on installation is code of the guest's
// processor, so it runs in a machine: the initrd starts the second stage there, once, and
// a Runner is what brings a machine. The result is kept under the hash of all that went
// in, and images are copies of it with a name and a password of their own.
//
// Nothing half-made is left: everything is made in a folder of its own, locked while its
// maker lives, and renamed when it is whole. Folders whose maker died are removed by the next.
//
// # What is trusted
//
// Debian's archive key and what it signs; the tools of this host (apt, dpkg-deb, mke2fs,
// debugfs, e2fsck, depmod, xz). Disk images from elsewhere are not trusted: a qcow2 file
// that names another file is refused, and one that is damaged ends in an error.
//
// Locks: one per key of the cache while it is built, one for the folder of packages, in
// this order; both are of the file system (flock), so processes exclude each other.
package image
