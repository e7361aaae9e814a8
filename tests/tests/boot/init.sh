# A machine's first process: systemd, in namespaces of its own, with the distribution's files read-only.
# $1: the egress binary, $2: a directory with the unit, its drop-in, the policy and foo.service, $3: the command line.
set -e
mount --make-rprivate /
umount -R -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /run/m
mount -t tmpfs none /run/m
for part in etc usr/bin var; do
    name=$(echo $part | tr / -)
    mkdir -p /run/m/$name/up /run/m/$name/work
    mount -t overlay none -o lowerdir=/$part,upperdir=/run/m/$name/up,workdir=/run/m/$name/work /$part
done
# Nothing of this machine's own set-up is started: its units are not there.
mount -t tmpfs none /etc/systemd
mkdir -p /etc/systemd/system/egress.service.d /etc/egress/policy.d
cp "$2"/egress.service "$2"/foo.service "$2"/test.target /etc/systemd/system/
cp "$2"/test.conf /etc/systemd/system/egress.service.d/
cp "$2"/policy.yaml /etc/egress/policy.d/
touch /usr/bin/egress
mount --bind "$1" /usr/bin/egress
mount --bind "$3" /proc/cmdline
mount -t tmpfs none /tmp
touch /run/console
mount --bind /run/console /dev/console
mount -o remount,bind,ro /
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
export container=egress-test
exec /lib/systemd/systemd --system --unit=test.target --log-target=console --log-level=info --show-status=no
