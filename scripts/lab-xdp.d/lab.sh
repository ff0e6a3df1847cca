# shellcheck shell=bash
# The lab: three namespaces and the two veth pairs that every forwarder takes in turn.
#
#   xdplab-src        xdplab-mid                          xdplab-dst
#   [source] ──────── [left]  forwarder  [right] ──────── [sink]
#    lab-xdp-source    native XDP, or GRO, so that         the kernel's own stack drops what is
#    live frames       live frames can be received         not for it; its counter is what we read
#
# Where the work is done: receiving on `left` happens where the source runs, since a veth's receive
# side is run by whoever sends. So the source's core pays for making frames and for the XDP program and
# the copy into the forwarder's buffers; the forwarder's core pays for its own work, for each packet's
# way out, and for the sink's stack.

BINARIES+=(lab-xdp-source)
PACKAGES+=(millrace-benches)
SRC=xdplab-src MID=xdplab-mid DST=xdplab-dst
# 75 MB for testpmd's buffers, and DPDK's own; Millrace's pool is 32 MB.
HUGEPAGES_NEEDED=80

make_lab() {
    local name
    step "making namespaces $SRC, $MID and $DST, joined by two veth pairs"
    for name in "$SRC" "$MID" "$DST"; do
        [[ ! -e /run/netns/$name ]] ||
            die "a namespace $name exists that is not ours: \`ip netns del $name\` removes it"
        own netns "$name"
        ip netns add "$name"
    done
    make_pair left "$SRC" source
    make_pair right "$DST" sink
    [[ $BACKEND != dpdk ]] || let_live_frames_in
    # Filters of the machine's own firewall are no part of the bridge.
    ip netns exec "$MID" sysctl -q -w net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true
    NF_USER=nobody
    SOCKET=$STATE/manager.sock
    install_nf_binary
    reserve_hugepages "$HUGEPAGES_NEEDED"
}

# make_pair INTERFACE NAMESPACE PEER: a veth from the forwarder's namespace into another.
make_pair() {
    ip -n "$MID" link add "$1" numrxqueues 1 numtxqueues 1 type veth \
        peer name "$3" netns "$2" numrxqueues 1 numtxqueues 1
    # No kernel speaks by itself: no IPv6 address, so no neighbour discovery.
    ip -n "$MID" link set "$1" addrgenmode none up
    ip -n "$2" link set "$3" addrgenmode none up
}

# Without an XDP program, GRO is what gives a veth a receive queue that live frames can enter.
let_live_frames_in() { ip netns exec "$MID" ethtool -K left gro on; }

# counter NAMESPACE INTERFACE NAME: sets COUNTER to a counter of the kernel.
counter() {
    COUNTER=$(ip netns exec "$1" cat "/sys/class/net/$2/statistics/$3")
    [[ $COUNTER =~ ^[0-9]+$ ]] || die "the kernel has no counter $3 of $2 in $1"
}
