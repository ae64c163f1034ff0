#!/bin/busybox sh
# PID 1 of the guests beside which networks, folders and disks are measured: loads the modules there are, sets its card up, mounts
# a folder if one is there, runs the command that its command line holds, and ends.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs dev /dev
$busybox mount -t tmpfs tmp /tmp
while read -r module; do $busybox insmod "/modules/$module"; done </modules/order
word() { for word in $($busybox cat /proc/cmdline); do case $word in "$1"=*) echo "${word#*=}" ;; esac; done; }
address=$(word bench.ip)
$busybox ip link set lo up
if [ -n "$address" ]; then
    $busybox ip link set eth0 up
    $busybox ip addr add "$address" dev eth0
    [ -z "$(word bench.gateway)" ] || $busybox ip route add default via "$(word bench.gateway)"
fi
$busybox mkdir -p /share
[ -z "$(word bench.folder)" ] || $busybox mount -t virtiofs "$(word bench.folder)" /share
echo BENCH-UP
# The rest of the command line after `--` is for PID 1.
"$@"
echo BENCH-DONE
$busybox sleep 0.3
echo b >/proc/sysrq-trigger
