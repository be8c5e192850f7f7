#!/bin/sh
# Install the Debian packages that a make target needs, and only those that are missing.
#   tools/setup.sh build|run|fastpath|demo|test|bench ...
# Services that come with a package (freeradius, xl2tpd) are not started: the lab runs its own in namespaces.
set -eu

need=
for group in "$@"; do
    case $group in
    build) need="$need python3-venv python3-dev gcc libc6-dev ca-certificates" ;;
    run) need="$need iptables libbpf1" ;; # python-iptables loads the former's libraries, the fast path the latter
    fastpath) need="$need clang llvm libbpf-dev gcc libc6-dev" ;;
    demo) need="$need iptables libbpf1 iproute2 procps ethtool iputils-ping tcpdump" ;;
    test)
        need="$need iptables libbpf1 iproute2 procps ethtool iputils-ping tcpdump tshark iperf3 ipset telnet"
        need="$need freeradius freeradius-utils user-mode-linux busybox-static kmod xl2tpd ppp chromium"
        ;;
    bench) need="$need iptables libbpf1 iproute2 procps ethtool iputils-ping iperf3 freeradius" ;;
    *)
        echo "setup.sh: no such group: $group" >&2
        exit 2
        ;;
    esac
done

missing=
for package in $need; do
    case " $missing " in *" $package "*) continue ;; esac
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "These Debian packages are missing; run this as root, or install them:$missing" >&2
    exit 1
fi
echo "Installing:$missing"

# https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt: 101 forbids to start a service.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq -y install --no-install-recommends $missing >/dev/null
