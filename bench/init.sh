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
    bench.rows=*) rows=${word#bench.rows=} ;;
    bench.scale=*) scale=${word#bench.scale=} ;;
    bench.text=*) text=${word#bench.text=} ;;
    esac
done

# Files for the programs that work on text, made the first time.
text() { [ -e /tmp/text ] || /bin/workloads gen "$text" >/tmp/text; }
packed() { text && { [ -e /tmp/text.gz ] || $busybox gzip -9 </tmp/text >/tmp/text.gz; }; }
timed() { /bin/workloads time "$@"; }

IFS=,
for row in $rows; do
    unset IFS
    # The host gives a row its time from this line on.
    case $row in
    gunzip) packed ;;
    gzip | sha256sum | awk) text ;;
    esac
    echo "BENCH-ROW $row"
    case $row in
    gzip) timed gzip $busybox sh -c 'gzip -9 </tmp/text >/tmp/text.gz' ;;
    gunzip) timed gunzip $busybox sh -c 'gunzip </tmp/text.gz >/dev/null' ;;
    sha256sum) timed sha256sum $busybox sh -c 'sha256sum /tmp/text >/dev/null' ;;
    awk) timed awk $busybox awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s++; print s > "/dev/null" }' /tmp/text ;;
    *) /bin/workloads "$row" "$scale" ;;
    esac
done
echo BENCH-DONE
$busybox sleep 0.3
# Neither machine has ACPI in common with the other; a reset ends both.
echo b >/proc/sysrq-trigger
