# shellcheck shell=bash
# The quickstart's lab: binaries, hugepages, two namespaces, the manager and its two NFs.
#
#   namespace mrq-a                    this namespace                      namespace mrq-b
#   mrq-a0 10.78.0.1 == veth == mrq-a [left] manager [right] mrq-b == veth == mrq-b0 10.78.0.2
#                                        │  ▲
#                              forward 1 ▼  │ forward 2    (two processes, ordinary user)

NF_SERVICES=(1 2)
NF_USER=nobody
ADDRESS_A=10.78.0.1
ADDRESS_B=10.78.0.2
# 64 MB: the pool (16,384 buffers of 2 KiB) is half of it, DPDK's own tables and rings the rest.
# (The kill test asks for more, so that pages are reserved on every machine.)
HUGEPAGES_NEEDED=${MILLRACE_QUICKSTART_HUGEPAGES:-32}

# --- namespaces -------------------------------------------------------------------------------

make_namespaces() {
    step "making namespaces mrq-a and mrq-b, joined by nothing but the manager"
    make_side mrq-a "$ADDRESS_A" 1
    make_side mrq-b "$ADDRESS_B" 2
    note "mrq-a0 $ADDRESS_A  and  mrq-b0 $ADDRESS_B"
}

# --- manager and NFs --------------------------------------------------------------------------

port_config() {
    local name=$1 interface=$2 egress=$3 number=$4
    printf '\n[[port]]\nname = "%s"\negress = "%s"\n' "$name" "$egress"
    case $BACKEND in
        af_xdp) printf 'backend = "af_xdp"\ninterface = "%s"\n' "$interface" ;;
        dpdk) printf 'backend = "dpdk"\ndevice = "net_af_packet%s,iface=%s"\n' "$number" "$interface" ;;
    esac
}

# write_config: the manager's configuration for this run.
write_config() {
    {
        printf '[manager]\nsocket = "%s"\nworkers = 1\npoll = "adaptive"\n' "$SOCKET"
        # The NFs' user is in no group of ours; nogroup is the one it has.
        if ((EUID == 0)); then printf 'socket_group = "nogroup"\n'; fi
        # A ring that holds every buffer is never full: then the generator waits, and none is lost.
        if [[ $BACKEND == generator ]]; then printf 'ring_capacity = 16384\n'; fi
        # Every packet counts, the first one too.
        printf 'wait_for_nfs = true\n'
        printf '\n[pool]\nbuffers = 16384\nhugepages = "%s"\n' "$HUGEPAGES"
        printf '\n[[chain]]\nname = "default"\nservices = [%s, %s]\n' "${NF_SERVICES[@]}"
        if [[ $BACKEND == generator ]]; then
            printf '\n[[port]]\nname = "source"\negress = "sink"\nbackend = "generator"\n'
            printf 'frame_bytes = %s\nrate_pps = %s\n' "$GENERATOR_FRAME_BYTES" "$GENERATOR_RATE_PPS"
            printf 'count_pkts = %s\nflows = 16\nseed = %s\n' "$GENERATOR_COUNT_PKTS" "$SEED"
            printf '\n[[port]]\nname = "sink"\negress = "source"\nbackend = "sink"\nverify = true\n'
        else
            port_config left mrq-a right 0
            port_config right mrq-b left 1
        fi
    } >"$STATE/manager.toml"
}

chain_ready() {
    local service
    read_status || return 1
    for service in "${NF_SERVICES[@]}"; do index_of nfs service "$service" || return 1; done
}

start_nfs() {
    local service
    AS_USER=()
    ((EUID != 0)) || as_user "$NF_USER"
    NF_PIDS=()
    for service in "${NF_SERVICES[@]}"; do
        spawn "$STATE/log/nf-$service.log" "${AS_USER[@]}" \
            "$NF_BINARY" forward --service "$service" --socket "$SOCKET"
        NF_PIDS+=("$SPAWNED_PID")
        # Whoever kills an NF to see what happens need not have the shell's word on it in the view.
        disown "$SPAWNED_PID"
    done
}

start_manager() {
    local directory
    for directory in /run/dpdk/rte /run/dpdk; do
        [[ $BACKEND != dpdk || -e $directory ]] || own empty_directory "$directory"
    done
    spawn "$STATE/log/manager.log" "$BIN_DIR/millrace-manager" --config "$STATE/manager.toml"
    MANAGER_PID=$SPAWNED_PID
}

# What `await` asks while the lab comes up: there is no waiting for the dead.
manager_ready_or_dead() { manager_ready || ! alive "$MANAGER_PID"; }
chain_ready_or_nf_dead() {
    local pid
    for pid in "${NF_PIDS[@]}"; do alive "$pid" || return 0; done
    chain_ready
}

start_chain() {
    step "starting the manager ($BACKEND) and two forward NFs"
    SOCKET=$STATE/manager.sock
    write_config
    install_nf_binary
    start_manager
    await 20 manager_ready_or_dead || true
    if ! alive "$MANAGER_PID" || ! manager_ready; then
        tail_of "$STATE/log/manager.log"
        die "the manager did not start"
    fi
    start_nfs
    await 20 chain_ready_or_nf_dead || true
    if ! chain_ready; then
        tail_of "$STATE/log/manager.log" 5
        local i
        for ((i = 0; i < ${#NF_SERVICES[@]}; i++)); do
            tail_of "$STATE/log/nf-${NF_SERVICES[i]}.log" 5
            alive "${NF_PIDS[i]}" || warn "the NF of service ${NF_SERVICES[i]} has ended"
        done
        die "the NFs are not attached to the manager"
    fi
    note "manager: pid $MANAGER_PID"
    if ((EUID == 0)); then
        note "NFs: pid ${NF_PIDS[*]}, as user $NF_USER, no privileges (socket group nogroup)"
    else
        note "NFs: pid ${NF_PIDS[*]}, as you (uid $EUID)"
    fi
}

# stop_chain: the manager first, which lets what is inside come out through the NFs and prints its
# account; then the NFs. Sets MANAGER_EXIT.
stop_chain() {
    MANAGER_EXIT=0
    stop_child "$MANAGER_PID" 10 || MANAGER_EXIT=$?
    MANAGER_PID=''
    local pid
    for pid in "${NF_PIDS[@]}"; do stop_child "$pid" 5 || true; done
}
NF_PIDS=()
MANAGER_PID=''
