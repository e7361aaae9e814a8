#!/bin/busybox sh
# The virtual machine's first process: joins the host's root file system, then runs second.sh there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc && mount -t sysfs none /sys && mount -t devtmpfs none /dev
while read -r module; do insmod "/mods/$module"; done </mods/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro root /lower
mount -t tmpfs -o size=60% none /rw && mkdir /rw/up /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/up,workdir=/rw/work none /new
mkdir -p /new/lib/modules/@RELEASE@
mount -o bind /lower@MODULES@ /new/lib/modules/@RELEASE@
umount /proc /sys
mount -o move /dev /new/dev
exec switch_root /new /bin/sh @SECOND@
