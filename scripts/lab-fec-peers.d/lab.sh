# shellcheck shell=bash
# The lab: two namespaces, a link that loses packets, the manager with its NFs.
#
#   fdx-near 10.81.0.1 ── [near]            [wan-a] ══ veth pair ══ [wan-b]           [far] ── fdx-far 10.81.0.2
#
#   near → NFs that add      → wan-a ══ loss ══ wan-b → NFs that repair → far
#   far                      → wan-b ══ loss ══ wan-a → NFs that repair → near
#
# All four ports are the same manager's. A port's losses are of what it receives.

NF_USER=nobody
NEAR=10.81.0.1 FAR=10.81.0.2
# UDP ports: kcptun's server, the stream that ffmpeg protects, the stream that we protect.
KCP_PORT=29900 THEIRS_PORT=5000 OURS_PORT=6000
# kcptun's default code, and a matrix of the usual size.
DATA_SHARDS=10 PARITY_SHARDS=3 COLUMNS_L=5 ROWS_D=5
# Our NFs, by id.
NFS_ON=(kcptun-add kcptun-strip smpte-protect smpte-repair)
declare -A NF_COMMAND=(
    [kcptun-add]="fec-kcptun --mode add --port $KCP_PORT --datashard $DATA_SHARDS --parityshard $PARITY_SHARDS --stock-pkts 6000"
    [kcptun-strip]="fec-kcptun --mode strip --port $KCP_PORT --datashard $DATA_SHARDS --parityshard $PARITY_SHARDS"
    [smpte-protect]="fec-smpte --mode protect --port $OURS_PORT --columns $COLUMNS_L --rows $ROWS_D --stock-pkts 6000"
    [smpte-repair]="fec-smpte --mode repair --port $THEIRS_PORT"
)

# need_peers: ends the script when a program is missing that we are to be tried against.
need_peers() {
    local program package
    local -a wanted=()
    if [[ $PARTS == *kcptun* ]]; then
        wanted+=(kcptun-client/kcptun kcptun-server/kcptun socat/socat)
    fi
    if [[ $PARTS == *smpte* ]]; then
        wanted+=(ffmpeg/ffmpeg gst-launch-1.0/gstreamer1.0-tools tcpdump/tcpdump)
    fi
    for program in "${wanted[@]}"; do
        package=${program#*/} program=${program%/*}
        command -v "$program" >/dev/null || skip "$program is not installed (apt-get install $package)"
    done
    if [[ $PARTS == *smpte* ]] && ! gst-inspect-1.0 --exists rtpst2022-1-fecdec; then
        skip "GStreamer has no rtpst2022-1-fecdec (apt-get install gstreamer1.0-plugins-good)"
    fi
}

skip() {
    echo "skipped: $1"
    exit 77
}

make_lab() {
    step "making namespaces fdx-near and fdx-far, and a link that loses $LOSS_PERCENT % each way"
    make_side fdx-near "$NEAR" 1
    make_side fdx-far "$FAR" 2
    make_wan
    # What the lab waits for must not depend on whether a request for an address is lost.
    know_neighbour near "$FAR" far
    know_neighbour far "$NEAR" near
    install_nf_binary
    SOCKET=$STATE/manager.sock
    write_config >"$STATE/lab.toml"
}

# know_neighbour SIDE ADDRESS PEER
know_neighbour() {
    ip -n "fdx-$1" neigh replace "$2" dev "fdx-${1}0" nud permanent \
        lladdr "$(ip netns exec "fdx-$3" cat "/sys/class/net/fdx-${3}0/address")"
}

make_wan() {
    local end
    for end in fdx-wan-a fdx-wan-b; do
        [[ ! -e /sys/class/net/$end ]] || die "an interface $end exists that is not ours: \`ip link del $end\` removes it"
    done
    own link fdx-wan-a
    ip link add fdx-wan-a numrxqueues 1 numtxqueues 1 type veth peer name fdx-wan-b \
        numrxqueues 1 numtxqueues 1
    for end in fdx-wan-a fdx-wan-b; do
        ip link set "$end" addrgenmode none
        ip link set "$end" up
    done
}

# port_config NAME EGRESS [SEED]: with a seed, a port that loses what it receives.
port_config() {
    printf '\n[[port]]\nname = "%s"\negress = "%s"\nbackend = "af_xdp"\ninterface = "fdx-%s"\n' \
        "$1" "$2" "$1"
    printf 'ring_descriptors = 4096\n'
    [[ -z ${3-} ]] || awk -v "percent=$LOSS_PERCENT" -v "seed=$3" \
        'BEGIN { printf "fault = { loss = %.6f, seed = %s }\n", percent / 100, seed }'
}

# service_config NAME ID END: the NF, and a chain of its name with nothing else that ends at a port.
service_config() {
    local word words=''
    for word in $NF_BINARY ${NF_COMMAND[$1]}; do words+="${words:+, }\"$word\""; done
    printf '\n[[service]]\nname = "%s"\nid = %s\ncommand = [%s]\nuser = "%s"\n' \
        "$1" "$2" "$words" "$NF_USER"
    printf '\n[[chain]]\nname = "%s"\nservices = ["%s"]\nend = "out:%s"\n' "$1" "$1" "$3"
}

# rule_config NAME PRIORITY MATCH THEN
rule_config() {
    printf '\n[[rule]]\nname = "%s"\npriority = %s\nmatch = { %s }\nthen = { %s }\n' "$@"
}

write_config() {
    printf '[manager]\nsocket = "%s"\nsocket_group = "nogroup"\nworkers = 1\npoll = "adaptive"\n' "$SOCKET"
    # What an NF borrows is at most half of its ring.
    printf 'ring_capacity = 16384\n\n[pool]\nbuffers = 65536\nhugepages = "off"\n'
    port_config near wan-a
    port_config wan-a near "$((SEED * 2 + 1))"
    port_config wan-b far "$((SEED * 2 + 2))"
    port_config far wan-b
    rule_config near 1 'in_port = "near"' 'out = "wan-a"'
    rule_config wan-b 1 'in_port = "wan-b"' 'out = "far"'
    rule_config far 1 'in_port = "far"' 'out = "wan-b"'
    rule_config wan-a 1 'in_port = "wan-a"' 'out = "near"'
    if ((OFF)); then return; fi
    local udp='ip_proto = "udp"' port
    service_config kcptun-add 1 wan-a
    service_config kcptun-strip 2 near
    service_config smpte-protect 3 wan-a
    service_config smpte-repair 4 far
    rule_config add 9 "in_port = \"near\", $udp, tp_dst = $KCP_PORT" 'chain = "kcptun-add"'
    rule_config strip 9 "in_port = \"wan-a\", $udp, tp_src = $KCP_PORT" 'chain = "kcptun-strip"'
    rule_config protect 9 "in_port = \"near\", $udp, tp_dst = $OURS_PORT" 'chain = "smpte-protect"'
    for port in 0 2 4; do
        rule_config "repair-$port" 9 "in_port = \"wan-b\", $udp, tp_dst = $((THEIRS_PORT + port))" \
            'chain = "smpte-repair"'
    done
}

# millrace ARGUMENTS…: the command, against this lab's manager.
millrace() { "$BIN_DIR/millrace" --socket "$SOCKET" "$@"; }

# near COMMAND…, far COMMAND…: in that namespace.
near() { ip netns exec fdx-near "$@"; }
far() { ip netns exec fdx-far "$@"; }

# `up` comes back when all that the file wants is running, or has stopped it all again.
start_manager() {
    step "millrace up: $( ((OFF)) && echo "no NFs" || echo "NFs ${NFS_ON[*]}")"
    local answer
    answer=$("$BIN_DIR/millrace" --json up "$STATE/lab.toml" 2>"$STATE/log/up.log") || {
        tail_of "$STATE/log/up.log"
        die "millrace up failed"
    }
    local -A up=()
    json_load up <<<"$answer" || die "millrace up: the answer is no JSON: $answer"
    MANAGER_PID=${up[pid]-}
    [[ $MANAGER_PID =~ ^[0-9]+$ ]] || die "millrace up: the answer has no pid: $answer"
}
MANAGER_PID=''

# read_counts SERVICE: what an NF has counted, into the array C; nothing without NFs.
declare -A C=()
read_counts() {
    C=()
    ((OFF == 0)) || return 0
    local answer word
    answer=$(millrace nf call "$1" get counts 2>"$STATE/log/call.log") || {
        tail_of "$STATE/log/call.log"
        die "the NF of service $1 does not answer"
    }
    for word in $answer; do
        [[ $word =~ ^([a-z_]+)=([0-9]{1,18})$ ]] || continue
        C[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    done
}

# read_losses PORT: sets COUNT to the packets that a port has lost on purpose so far.
read_losses() {
    read_status || die "the manager no longer answers"
    COUNT=0
    if index_of ports name "$1"; then count "ports.$INDEX.drops.fault_loss"; fi
}

traffic_settled() { read_status && [[ ${S[accounting.held_pkts]-} == 0 ]]; }

# stop_manager: the account, then `millrace down`.
stop_manager() {
    local balanced=0 code=0
    read_status || die "the manager no longer answers"
    [[ ${S[accounting.balanced]-} != true ]] || balanced=1
    count accounting.rx_pkts
    check "the manager's own account" "$COUNT packets came in" balanced
    millrace down >"$STATE/log/down.log" 2>&1 || code=$?
    check "millrace down" "exit code $code" "code == 0"
}
