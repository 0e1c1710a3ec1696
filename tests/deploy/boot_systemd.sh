#!/bin/bash
# A systemd of its own as PID 1, in namespaces of its own, over an overlay of this root: nothing of the host is changed.
#
#     boot_systemd.sh outer DIR
#
# DIR/binds has a line "SOURCE TARGET" for each directory to be seen inside. DIR/step says what is being tried: if it
# fails before "boot", this machine does not allow it. Ends when the systemd does, and leaves no cgroup behind.
set -euo pipefail
directory=$2

step() { echo "$*" > "$directory/step"; }

outer() {
    step "mount the hierarchy of cgroups v2"
    mkdir "$directory/cgroup"
    mount -t cgroup2 cgroup2 "$directory/cgroup"
    step "make a cgroup"
    here=$directory/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
    own=$here/pgworker-test-$$
    mkdir "$own"
    trap 'echo $$ > "$here/cgroup.procs"; find "$own" -depth -type d -exec rmdir {} +' EXIT
    echo $$ > "$own/cgroup.procs"
    step "unshare namespaces"
    setpriv --pdeathsig KILL unshare --mount --pid --cgroup --ipc --uts --fork --kill-child --propagation private \
        bash "$0" inner "$directory"
}

inner() {
    step "mount an overlay over /"
    mkdir "$directory/layers"
    mount -t tmpfs -o mode=755 tmpfs "$directory/layers"
    mkdir "$directory"/layers/{upper,work,root}
    root=$directory/layers/root
    mount -t overlay -o "lowerdir=/,upperdir=$directory/layers/upper,workdir=$directory/layers/work" overlay "$root"
    mountpoint -q "$root"
    step "mount /proc, /sys and /dev"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    for volatile in run tmp var/tmp dev; do
        mkdir -p "$root/$volatile"
        mount -t tmpfs tmpfs "$root/$volatile"
    done
    chmod 755 "$root/run" "$root/dev"
    for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
        read -r name major minor <<< "$device"
        mknod -m 666 "$root/dev/$name" c "$major" "$minor"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root"/dev/{shm,pts,mqueue}
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
    mount -t mqueue mqueue "$root/dev/mqueue"
    ln -s pts/ptmx "$root/dev/ptmx"
    # Of the host's units none is wanted, nor what it has of ours; those that are asked for are there.
    rm -rf "$root"/etc/systemd/system/* "$root/etc/fstab" "$root/etc/pgworker" "$root/opt/pgworker"
    rm -rf "$root"/{usr/,}lib/systemd/{system/*.wants,system-generators}
    mkdir "$root/etc/systemd/system/multi-user.target.wants"
    ln -s /lib/systemd/system/systemd-journald.service "$root/etc/systemd/system/multi-user.target.wants/"
    step "bind the directories that tests need"
    while read -r source target; do
        mkdir -p "$root$target"
        mount --bind "$source" "$root$target"
    done < "$directory/binds"
    step "change the root"
    cd "$root"
    mkdir .old
    pivot_root . .old
    cd /
    step() { echo "$*" > "/.old$directory/step"; }
    step boot
    umount -l /.old
    rmdir /.old
    mount --make-rshared / # LoadCredential= needs it
    echo /opt/python/lib > /etc/ld.so.conf.d/test.conf
    ldconfig
    sed -i -E 's/^(passwd|group):.*/\1: files systemd/' /etc/nsswitch.conf # dynamic users have names
    exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal-or-kmsg --show-status=0
}

"$1"
