# DIR NAME DISK: in new namespaces, makes a root over this computer's in DIR, and stays there.
set -e
dir=$1 name=$2 disk=$3
mount --make-rprivate /
mkdir -p "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
cd "$dir/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# Devices that are nobody else's, but for the box's drive.
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir -p dev/net dev/pts dev/shm dev/disk/by-id
mknod -m 600 dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
if [ -n "$disk" ]; then
  # shellcheck disable=SC2046
  mknod -m 600 "dev/disk/by-id/nvme-${name^^}" b $((0x$(stat -c %t "$disk"))) $((0x$(stat -c %T "$disk")))
fi
# A box is no other, and no container: it has an identifier of its own.
rm -f etc/machine-id
echo "$name" | md5sum | cut -c1-32 >etc/machine-id
echo "$name" >etc/hostname
hostname "$name"
# What another installation has left is not this box's.
rm -rf etc/steadfast var/lib/steadfast var/lib/steadfast-host var/lib/steadfast-witness
ip link set lo up
touch "$dir/ready"
exec chroot . sleep infinity
