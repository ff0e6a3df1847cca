# shellcheck shell=bash
# The lab: a client, a server, and between them two sites joined by a long link that loses packets.
#
#   fln-client ── [client]  site A  [wan-a] ══ veth pair ══ [wan-b]  site B  [server] ── fln-server
#   10.82.0.1              192.0.2.1                      198.51.100.1               10.82.0.2
#
#   client → a-out → wan-a ══ delay, loss ══ wan-b → b-in → server
#   server → b-out → wan-b ══ delay, loss ══ wan-a → a-in → client
#
# a-out and b-out are fec-encode, a-in and b-in fec-decode; without FEC all four are `forward`. One
# manager has the ports of both sites. A port's delay and losses are of what it receives.

NF_USER=nobody
CLIENT=10.82.0.1 SERVER=10.82.0.2
SITE_A=192.0.2.1:4950 SITE_B=198.51.100.1:4950
SITE_A_MAC=02:00:00:00:0a:01 SITE_B_MAC=02:00:00:00:0b:01
CASES=(plain fec)

make_lab() {
    step "making namespaces fln-client and fln-server, and a link of $DELAY_MS ms that loses $LOSS of all packets"
    make_side fln-client "$CLIENT" 1
    make_side fln-server "$SERVER" 2
    make_wan
    # Nobody asks for addresses, so that nothing waits for an answer that is lost.
    know_neighbour client "$SERVER" server
    know_neighbour server "$CLIENT" client
    local side
    for side in client server; do
        # What one connection learnt about the way must not help the next one, nor hinder it.
        ip netns exec "fln-$side" sysctl -q -w net.ipv4.tcp_no_metrics_save=1
    done
    install_nf_binary
    SOCKET=$STATE/manager.sock
    local case
    for case in "${CASES[@]}"; do write_config "$case" >"$STATE/$case.toml"; done
}

mac_of() { ip netns exec "fln-$1" cat "/sys/class/net/fln-${1}0/address"; }

# know_neighbour SIDE ADDRESS PEER
know_neighbour() {
    ip -n "fln-$1" neigh replace "$2" dev "fln-${1}0" nud permanent lladdr "$(mac_of "$3")"
}

make_wan() {
    local end
    for end in fln-wan-a fln-wan-b; do
        [[ ! -e /sys/class/net/$end ]] || die "an interface $end exists that is not ours: \`ip link del $end\` removes it"
    done
    own link fln-wan-a
    ip link add fln-wan-a numrxqueues 1 numtxqueues 1 type veth peer name fln-wan-b \
        numrxqueues 1 numtxqueues 1
    for end in fln-wan-a fln-wan-b; do
        ip link set "$end" addrgenmode none
        ip link set "$end" up
    done
}

# port_config NAME EGRESS [SEED]: with a seed, an end of the long link.
port_config() {
    printf '\n[[port]]\nname = "%s"\negress = "%s"\nbackend = "af_xdp"\ninterface = "fln-%s"\n' \
        "$1" "$2" "$1"
    printf 'ring_descriptors = 4096\n'
    [[ -z ${3-} ]] || printf 'fault = { loss = %s, delay_us = %s, seed = %s }\n' \
        "$LOSS" "$((DELAY_MS * 1000))" "$3"
}

# way_config NAME IN_PORT OUT_PORT COMMAND…: a service, its chain, and the rule that leads there.
way_config() {
    local name=$1 from=$2 to=$3 word words=''
    shift 3
    for word in "$NF_BINARY" "$@"; do words+="${words:+, }\"$word\""; done
    printf '\n[[service]]\nname = "%s"\ncommand = [%s]\nuser = "%s"\n' "$name" "$words" "$NF_USER"
    printf '\n[[chain]]\nname = "%s"\nservices = ["%s"]\nend = "out:%s"\n' "$name" "$name" "$to"
    printf '\n[[rule]]\nmatch = { in_port = "%s" }\nthen = { chain = "%s" }\n' "$from" "$name"
}

# write_config CASE
write_config() {
    printf '[manager]\nsocket = "%s"\nsocket_group = "nogroup"\nworkers = 1\npoll = "adaptive"\n' "$SOCKET"
    printf 'ring_capacity = 8192\n\n[pool]\nbuffers = 32768\nhugepages = "off"\n'
    port_config client wan-a
    port_config wan-a client "$((SEED * 2 + 1))"
    port_config wan-b server "$((SEED * 2 + 2))"
    port_config server wan-b
    local -a encode=(forward) decode_a=(forward) decode_b=(forward) to_a=() to_b=()
    if [[ $1 == fec ]] && ((OFF == 0)); then
        encode=(fec-encode -k "$K" -m "$M")
        to_a=(--local "$SITE_B" --mac "$SITE_B_MAC" --peer "$SITE_A" --next-hop-mac "$SITE_A_MAC")
        to_b=(--local "$SITE_A" --mac "$SITE_A_MAC" --peer "$SITE_B" --next-hop-mac "$SITE_B_MAC")
        decode_a=(fec-decode --local "$SITE_A" --mac "$SITE_A_MAC" --peer "$SITE_B" --reports-to a-out
            --next-hop-mac "$(mac_of client)")
        decode_b=(fec-decode --local "$SITE_B" --mac "$SITE_B_MAC" --peer "$SITE_A" --reports-to b-out
            --next-hop-mac "$(mac_of server)")
        if [[ $IN_ORDER != off ]]; then
            decode_a+=(--in-order "$IN_ORDER")
            decode_b+=(--in-order "$IN_ORDER")
        fi
    fi
    way_config a-out client wan-a "${encode[@]}" "${to_b[@]}"
    way_config b-out server wan-b "${encode[@]}" "${to_a[@]}"
    way_config a-in wan-a client "${decode_a[@]}"
    way_config b-in wan-b server "${decode_b[@]}"
}

# millrace ARGUMENTS…: the command, against this lab's manager.
millrace() { "$BIN_DIR/millrace" --socket "$SOCKET" "$@"; }

# client COMMAND…, server COMMAND…: in that namespace.
client() { ip netns exec fln-client "$@"; }
server() { ip netns exec fln-server "$@"; }

# start_manager CASE: `up` comes back when all that the file wants is running, or has stopped it again.
start_manager() {
    "$BIN_DIR/millrace" up "$STATE/$1.toml" >"$STATE/log/up.log" 2>&1 || {
        tail_of "$STATE/log/up.log"
        die "millrace up failed"
    }
    # The kernel's counters begin anew with the manager's.
    kernel_drops
    KERNEL_DROPS_BEFORE=$KERNEL_DROPS
}

# kernel_drops: what the kernel dropped of what Millrace had sent: a veth whose other end has no room.
kernel_drops() {
    local name count
    KERNEL_DROPS=0
    for name in client server wan-a wan-b; do
        read -r count <"/sys/class/net/fln-$name/statistics/tx_dropped"
        KERNEL_DROPS=$((KERNEL_DROPS + count))
    done
}

# read_counts SERVICE SETTING: what an FEC NF has counted, into the array C.
declare -A C=()
read_counts() {
    local answer word
    C=()
    answer=$(millrace nf call "$1" get "$2" 2>"$STATE/log/call.log") || {
        tail_of "$STATE/log/call.log"
        die "the NF of service $1 does not answer"
    }
    for word in $answer; do
        [[ $word =~ ^([a-z-]+)=([0-9]{1,18})$ ]] || continue
        C[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    done
}

# link_losses: sets LINK_LOST to what the link has lost on purpose so far, both ways, and LINK_LOST_THERE
# to what it has lost on the way to the server.
link_losses() {
    read_status || die "the manager no longer answers"
    index_of ports name wan-b || die "the manager's status has no port wan-b"
    count "ports.$INDEX.drops.fault_loss"
    LINK_LOST_THERE=$COUNT
    index_of ports name wan-a || die "the manager's status has no port wan-a"
    count "ports.$INDEX.drops.fault_loss"
    LINK_LOST=$((LINK_LOST_THERE + COUNT))
}

# settle: what was on its way when an application ended arrives, answers to it too.
settle() { sleep "$(awk -v "ms=$DELAY_MS" 'BEGIN { print 0.3 + 3 * ms / 1000 }')"; }

# stop_manager CASE: the account of every drop, then `millrace down`.
stop_manager() {
    local label=${LABEL[$1]} rx dropped others=0 code=0 i
    settle
    read_status || die "the manager no longer answers"
    count accounting.rx_pkts; rx=$COUNT
    count accounting.dropped_pkts; dropped=$COUNT
    local meant=0 balanced=0
    [[ ${S[accounting.balanced]-} != true ]] || balanced=1
    for ((i = 0; ; i++)); do
        [[ -n ${S[drops.$i.reason]-} ]] || break
        count "drops.$i.pkts"
        case ${S[drops.$i.reason]} in
            # Losses of the link, parity packets that have done their work, empty buffers not needed.
            fault_loss | nf_drop | loan_returned) meant=$((meant + COUNT)) ;;
            *) others=$((others + COUNT)) ;;
        esac
    done
    kernel_drops
    others=$((others + KERNEL_DROPS - KERNEL_DROPS_BEFORE))
    check "$label: account" "$rx packets in, $dropped dropped by link and NFs, $others elsewhere" \
        "balanced && rx > 0 && others == 0 && dropped == meant"
    millrace down >"$STATE/log/down.log" 2>&1 || code=$?
    check "$label: millrace down" "exit code $code" "code == 0"
}
