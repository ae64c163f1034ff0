#!/bin/busybox sh
# PID 1 of the benchmark guest: the same under every machine. Speaks over the console, then powers off.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
$busybox mount -t tmpfs tmp /tmp
echo BENCH-UP
export BENCH_TRUE=/bin/true
for word in $($busybox cat /proc/cmdline); do
    case $word in
    bench.only=*) only=${word#bench.only=} ;;
    bench.scale=*) scale=${word#bench.scale=} ;;
    bench.text=*) text=${word#bench.text=} ;;
    esac
done
case $only in
none) ;;
all)
    /bin/workloads all "$scale"
    /bin/workloads gen "$text" >/tmp/text
    /bin/workloads time gzip $busybox sh -c 'gzip -9 </tmp/text >/tmp/text.gz'
    /bin/workloads time gunzip $busybox sh -c 'gunzip </tmp/text.gz >/dev/null'
    /bin/workloads time sha256sum $busybox sh -c 'sha256sum /tmp/text >/dev/null'
    /bin/workloads time awk $busybox awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s++; print s > "/dev/null" }' /tmp/text
    ;;
*) /bin/workloads "$only" "$scale" ;;
esac
echo BENCH-DONE
$busybox sleep 0.2
# Neither machine has ACPI in common with the other; a reset ends both.
echo b >/proc/sysrq-trigger
