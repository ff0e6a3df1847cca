# shellcheck shell=bash
# Network namespaces, each with one veth pair that leads to a port of the manager.

# mac SIDE: a local hardware address made from the seed.
mac() { printf '02:6d:%02x:%02x:00:%02x' $((SEED >> 8 & 255)) $((SEED & 255)) "$1"; }

# make_side NAME ADDRESS NUMBER: one namespace and the veth pair that leads to the manager.
make_side() {
    local name=$1 inner=${1}0
    [[ ! -e /run/netns/$name ]] || die "a namespace $name exists that is not ours: \`ip netns del $name\` removes it"
    [[ ! -e /sys/class/net/$name ]] || die "an interface $name exists that is not ours: \`ip link del $name\` removes it"
    own netns "$name"
    ip netns add "$name"
    own link "$name"
    ip link add "$name" numrxqueues 1 numtxqueues 1 type veth \
        peer name "$inner" netns "$name" numrxqueues 1 numtxqueues 1 address "$(mac "$3")"
    # The kernel on this side stays out: no IPv6 address means no neighbour discovery of its own.
    ip link set "$name" addrgenmode none
    ip -n "$name" link set "$inner" addrgenmode none
    ip -n "$name" addr add "$2/24" dev "$inner"
    ip -n "$name" link set lo up
    if [[ ${BACKEND-} == dpdk ]]; then
        # A packet socket gives frames as the sender left them: with checksums and segments still
        # to be done by a NIC that is not there. So the sender does them.
        ip netns exec "$name" ethtool -K "$inner" tx off tso off gso off gro off >/dev/null
        ethtool -K "$name" tx off tso off gso off gro off >/dev/null
    fi
    ip link set "$name" up
    ip -n "$name" link set "$inner" up
}
