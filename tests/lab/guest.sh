#!/busybox sh
# First process of a guest machine (uml.py): mounts, modules, network, then commands from the serial line.
# A line in is "NUMBER BASE64-OF-A-SHELL-COMMAND", a line out "NUMBER STATUS BASE64-OF-ITS-OUTPUT".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8
[ -d /usr/bin ] || {
    /busybox mount -t hostfs -o ro,/usr none /usr
    exec /bin/sh /init # busybox prefers its own half of every command
}
mount -t proc none /proc
mount -t sysfs none /sys
mountpoint -q /dev || mount -t devtmpfs none /dev
mount -o remount,rw /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
for directory in /tmp /run /var/log /dev/shm; do mount -t tmpfs none $directory; done
mkdir -p /run/xl2tpd /run/lock
# No module comes by itself: whether l2tp_ppp is there decides how xl2tpd works.
echo /bin/false >/proc/sys/kernel/modprobe
for word in $(cat /proc/cmdline); do
    case $word in
    guest_address=* | guest_gateway=* | guest_modules=*) eval "$word" ;;
    esac
done
for module in $(echo "$guest_modules" | tr , ' '); do modprobe -d /modules "$module"; done
hostname client
ip link set lo up
ip address add "$guest_address" dev vec0
ip link set vec0 up
ip route add default via "$guest_gateway"

exec </dev/ttyS0 >/dev/ttyS0
stty raw -echo
echo "ready 0 "
while read -r number command; do
    echo "$command" | base64 -d >/tmp/command
    sh /tmp/command </dev/null >/tmp/output 2>&1
    printf '%s %s %s\n' "$number" $? "$(base64 -w0 /tmp/output)"
done
