# The virtual machine's own set-up, in the host's root file system; then the command, its exit code, and power off.
export PATH='@PATH@' HOME=/root EGRESS_VM=1 EGRESS_SKIPS=/run/skipped
mount -t proc none /proc
mount -t sysfs none /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
for dir in /dev/shm /run /tmp; do mount -t tmpfs none "$dir"; done
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t securityfs none /sys/kernel/security
ip link set lo up
# /dev/net/tun is made when the module is there.
modprobe tun
cd '@WORKSPACE@' || exit
: >/run/skipped
echo "egress-vm-up: kernel $(uname -r), LSMs $(cat /sys/kernel/security/lsm), $(cut -d' ' -f1 /proc/uptime) s after its start"
( @COMMAND@ ) 2>&1
code=$?
sed 's/^/  skipped /' /run/skipped
echo "egress-vm-exit: $code"
/bin/busybox poweroff -f
