# shellcheck shell=bash
# What stands between the two veth pairs. Each has a name_start that returns when packets can come, and
# a name_stop; both leave the interfaces as they found them.

FORWARDER_LOG=''
FORWARDER_PID=''

# spawn_here LOG COMMAND…: as `spawn`; with --ahead at nice -20. Each session is a scheduling group of its
# own where the kernel groups by them, so the group gets the same.
spawn_here() {
    local log=$1
    shift
    if ((!AHEAD_OF_ALL)); then
        spawn "$log" "$@"
        return
    fi
    # shellcheck disable=SC2016  # for the shell inside
    spawn "$log" nice -n -20 "$BASH" -c \
        '{ echo -20 >/proc/self/autogroup; } 2>/dev/null; exec "$@"' "$1" "$@"
}

# Of DPDK's driver on packet sockets, the same for both.
AF_PACKET_OPTIONS='framecnt=2048,framesz=2048,blocksz=4096,qdisc_bypass=1'

# --- Millrace ----------------------------------------------------------------------------------

port_config() {
    printf '\n[[port]]\nname = "%s"\negress = "%s"\n' "$1" "$2"
    case $BACKEND in
        af_xdp)
            printf 'backend = "af_xdp"\ninterface = "%s"\nring_descriptors = 512\n' "$1"
            ;;
        dpdk) printf 'backend = "dpdk"\ndevice = "net_af_packet%s,iface=%s,%s"\n' "$3" "$1" "$AF_PACKET_OPTIONS" ;;
    esac
}

# write_config CHAIN: its services in brackets, or nothing.
write_config() {
    printf '[manager]\nsocket = "%s"\nsocket_group = "nogroup"\n' "$SOCKET"
    printf 'workers = 1\ncores = [%s]\nwait_for_nfs = true\n' "$FORWARDER_CORE"
    # testpmd polls whatever happens; so do we, unless an NF needs the core too.
    [[ -n $1 && $NF_CORE == "$FORWARDER_CORE" ]] || printf 'poll = "busy"\n'
    # Rings as short as they can be without loss of rate, here and at the ports: the fewer buffers are in
    # use, the more of them are in the caches. With a source that never rests all rings are always full.
    printf 'ring_capacity = 1024\n\n[pool]\nbuffers = 16384\nhugepages = "try"\n'
    # The driver's frames are of 2,048 bytes, and must fit in a buffer behind its headroom.
    [[ $BACKEND == af_xdp ]] || printf 'buffer_bytes = 4096\n'
    port_config left right 0
    port_config right left 1
    # The manager starts the NF, in its own session: in another one, where the kernel makes each session
    # a scheduling group, an NF that yields the core would not yield it to the worker.
    [[ -z $1 ]] || printf '\n[[service]]\nname = "forward"\nid = 1\ncommand = ["%s", "forward"]\nuser = "%s"\ncores = [%s]\n' \
        "$NF_BINARY" "$NF_USER" "$NF_CORE"
    printf '\n[[chain]]\nname = "default"\nservices = [%s]\n' "$1"
}

# millrace_start CHAIN
millrace_start() {
    write_config "$1" >"$STATE/manager.toml"
    spawn_here "$FORWARDER_LOG" ip netns exec "$MID" \
        "$BIN_DIR/millrace-manager" --config "$STATE/manager.toml"
    FORWARDER_PID=$SPAWNED_PID
    await 20 millrace_ready_or_dead || true
    manager_ready || die "the manager did not start: $(tail -n 1 "$FORWARDER_LOG")"
    [[ -n $1 ]] || return 0
    await 20 nf_ready_or_dead || true
    nf_ready || die "the NF did not attach: $(tail -n 1 "$FORWARDER_LOG")"
}

millrace_ready_or_dead() { manager_ready || ! alive "$FORWARDER_PID"; }
nf_ready_or_dead() { nf_ready || ! alive "$FORWARDER_PID"; }
nf_ready() {
    read_status && index_of services name forward &&
        [[ -n ${S[services.$INDEX.instances.0]-} && ${S[plan.changing]-} == false ]]
}

# millrace_stop: the manager first, which lets what is inside come out and exits non-zero when its
# books do not balance.
millrace_stop() {
    local code=0
    await 5 nothing_held || true
    read_status || die "the manager no longer answers"
    count accounting.rx_pkts
    RUN_RX_PKTS=$COUNT
    count accounting.dropped_pkts
    DROPPED_PKTS=$((DROPPED_PKTS + COUNT))
    count accounting.tx_pkts
    RUN_TX_PKTS=$COUNT
    stop_child "$FORWARDER_PID" 10 || code=$?
    if ((code)) || [[ ${S[accounting.balanced]-} != true ]]; then
        UNBALANCED=$((UNBALANCED + 1))
        FAILURES+=("the manager's books do not balance (exit code $code): $(tail -n 1 "$FORWARDER_LOG")")
    fi
}
nothing_held() { read_status && [[ ${S[accounting.held_pkts]-} == 0 ]]; }

none_start() { millrace_start ''; }
none_stop() { millrace_stop; }
nf_start() { millrace_start '"forward"'; }
nf_stop() { millrace_stop; }

# --- dpdk-testpmd ------------------------------------------------------------------------------

# Of what was tried, the fastest: no busy polling (the driver's default), bursts of 64 instead of 32,
# rings of 2,048 (the most that the driver fills) instead of 512.
testpmd_start() {
    local driver='net_af_xdp%s,iface=%s,busy_budget=0' left right directory
    [[ $BACKEND == af_xdp ]] || driver="net_af_packet%s,iface=%s,$AF_PACKET_OPTIONS"
    # shellcheck disable=SC2059  # a format of ours
    printf -v left "$driver" 0 left
    # shellcheck disable=SC2059
    printf -v right "$driver" 1 right
    for directory in /run/dpdk/rte /run/dpdk; do
        [[ -e $directory ]] || own empty_directory "$directory"
    done
    # It forwards on the second of its cores; the first only waits for a signal.
    spawn_here "$FORWARDER_LOG" ip netns exec "$MID" dpdk-testpmd --no-pci --in-memory --no-telemetry \
        -l "$SOURCE_CORE,$FORWARDER_CORE" --main-lcore "$SOURCE_CORE" --vdev "$left" --vdev "$right" -- \
        --forward-mode=io --auto-start --nb-cores=1 --burst=64 --rxd=2048 --txd=2048 \
        --total-num-mbufs=32768 --stats-period=1
    FORWARDER_PID=$SPAWNED_PID
    await 30 testpmd_ready_or_dead || true
    testpmd_ready || die "dpdk-testpmd does not start: $(grep -m 1 -iE 'cannot|fail|error' "$FORWARDER_LOG")"
}
testpmd_ready() { grep -qs 'Port statistics' "$FORWARDER_LOG"; }
testpmd_ready_or_dead() { testpmd_ready || ! alive "$FORWARDER_PID"; }
testpmd_stop() {
    kill -INT -- "-$FORWARDER_PID" 2>/dev/null || true
    await 10 not alive "$FORWARDER_PID" || stop_child "$FORWARDER_PID" 2 || true
    wait "$FORWARDER_PID" 2>/dev/null || true
}

# --- the kernel's bridge -------------------------------------------------------------------------

# It forwards where the packets arrive, so on the source's core; moved to the other one by threaded
# NAPI it is slower here.
bridge_start() {
    let_live_frames_in
    ip -n "$MID" link add lab-bridge type bridge
    ip -n "$MID" link set left master lab-bridge
    ip -n "$MID" link set right master lab-bridge
    ip -n "$MID" link set lab-bridge addrgenmode none up
    await 5 bridge_forwards || die "the bridge's ports do not come to forward"
}
bridge_forwards() {
    [[ $(ip netns exec "$MID" cat /sys/class/net/{left,right}/brport/state) == $'3\n3' ]]
}
bridge_stop() {
    ip -n "$MID" link del lab-bridge
    [[ $BACKEND == dpdk ]] || ip netns exec "$MID" ethtool -K left gro off
}
