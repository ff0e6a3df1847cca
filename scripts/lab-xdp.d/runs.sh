# shellcheck shell=bash
# The runs, in turn, and the rows that come of them.

# What a run's rate is filed under: rates in packets a second, with spaces between.
declare -A RATES=()
RUNS=0 OFFERED_PKTS=0 FORWARDED_PKTS=0 DROPPED_PKTS=0 UNBALANCED=0
RUN_RX_PKTS=0 RUN_TX_PKTS=0
declare -A SHOWN=([none]='Millrace, no NF' [nf]='Millrace, 1 NF' [testpmd]='dpdk-testpmd' [bridge]='kernel bridge')

run_all() {
    local rep forwarder
    command -v dpdk-testpmd >/dev/null || drop_testpmd
    step "$REPS runs each of ${CHOSEN[*]}: $SECONDS_EACH s, $PACKET_BYTES bytes, source on core" \
        "$SOURCE_CORE, forwarder on $FORWARDER_CORE, NF on $NF_CORE"
    for ((rep = 1; rep <= REPS; rep++)); do
        for forwarder in "${CHOSEN[@]}"; do one_run "$forwarder" "$rep"; done
    done
}

drop_testpmd() {
    local one
    local -a kept=()
    for one in "${CHOSEN[@]}"; do [[ $one == testpmd ]] || kept+=("$one"); done
    ((${#kept[@]} < ${#CHOSEN[@]})) || return 0
    warn "skipped: dpdk-testpmd is not installed (Debian: apt-get install dpdk-dev)"
    CHOSEN=("${kept[@]}")
}

# one_run FORWARDER REP: the rate is what reached the sink by the time it took to send it. What is in
# the forwarder's rings at the end is let out; that is a few milliseconds' worth.
one_run() {
    local before rate
    local -A source=()
    FORWARDER_LOG=$STATE/log/$1-$2.log
    "${1}_start"
    counter "$DST" sink rx_packets
    before=$COUNTER
    spawn_here "$STATE/log/source.log" ip netns exec "$SRC" taskset -c "$SOURCE_CORE" \
        "$BIN_DIR/lab-xdp-source" send --interface source \
        --seconds "$SECONDS_EACH" --packet-bytes "$PACKET_BYTES" --seed "$SEED"
    wait "$SPAWNED_PID" ||
        die "the source failed: $(tail -n 1 "$STATE/log/source.log")"
    json_load source <"$STATE/log/source.log" ||
        die "the source's answer is no JSON: $(tail -n 1 "$STATE/log/source.log")"
    settle
    "${1}_stop"
    local pkts=$((COUNTER - before))
    # A few that were in rings are no traffic.
    ((pkts * 1000 > source[packets])) || FAILURES+=("${SHOWN[$1]}, run $2: $pkts packets of ${source[packets]} arrived")
    check_sink "$1" "$pkts"
    rate=$(awk -v pkts="$pkts" -v s="${source[seconds]}" 'BEGIN { printf "%.0f", pkts / s }')
    RATES[$1]+=" $rate"
    OFFERED[$1]+=" ${source[pps]}"
    RUNS=$((RUNS + 1)) FORWARDED_PKTS=$((FORWARDED_PKTS + pkts))
    OFFERED_PKTS=$((OFFERED_PKTS + source[packets]))
    note "$(printf 'run %d, %-16s %8d packets/s of %8d offered' "$2" "${SHOWN[$1]}" "$rate" "${source[pps]}")"
}
declare -A OFFERED=()

# settle: until the sink's counter stands still.
settle() {
    local last=-1
    counter "$DST" sink rx_packets
    while ((COUNTER != last)); do
        last=$COUNTER
        sleep 0.05
        counter "$DST" sink rx_packets
    done
}

# check_sink FORWARDER PKTS: what Millrace says it sent is what the far end's kernel counted.
check_sink() {
    [[ $1 == none || $1 == nf ]] || return 0
    counter "$MID" right tx_dropped
    (($2 == RUN_TX_PKTS)) ||
        FAILURES+=("${SHOWN[$1]}: sent $RUN_TX_PKTS packets by its own account, $2 arrived, the kernel dropped $COUNTER")
    ((RUN_RX_PKTS > 0)) || FAILURES+=("${SHOWN[$1]}: received nothing by its own account")
}

# median VALUES…: sets MEDIAN, in millions with three digits.
median() {
    MEDIAN=$(printf '%s\n' "$@" | sort -n |
        awk '{ v[NR] = $1 } END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2; printf "%.3f", m / 1e6 }')
}

# --- rows ---------------------------------------------------------------------------------------

show_rows() {
    local ours peer aim
    step "medians of $REPS runs each"
    if ((JSON)); then
        "$BIN_DIR/lab-xdp-source" environment >&"$LAST_LINE"
    else
        "$BIN_DIR/lab-xdp-source" environment
        printf '%-58s %8s %8s  %-6s %-28s %6s  %s\n' work ours peer unit 'peer is' ratio aim
    fi
    for ours in none nf; do
        aim=1.0
        [[ $ours == none ]] || aim=0.9
        [[ $BACKEND == af_xdp ]] || aim=0 # none was set
        for peer in testpmd bridge; do row "$ours" "$peer" "$aim"; done
    done
}

# row OURS PEER AIM
row() {
    [[ -n ${RATES[$1]-} && -n ${RATES[$2]-} ]] || return 0
    local work peer ours theirs ratio met=false
    local backend=AF_XDP driver=net_af_xdp
    [[ $BACKEND == af_xdp ]] || backend='AF_PACKET by DPDK' driver=net_af_packet
    work="veth → $backend → $backend → veth, $PACKET_BYTES B, no NF"
    [[ $1 == none ]] || work=${work/no NF/1 NF process}
    peer="dpdk-testpmd $driver"
    [[ $2 == testpmd ]] || peer='kernel bridge'
    # shellcheck disable=SC2086  # lists of numbers
    median ${RATES[$1]}
    ours=$MEDIAN
    # shellcheck disable=SC2086
    median ${RATES[$2]}
    theirs=$MEDIAN
    ratio=$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", (b > 0) ? a / b : 0 }')
    if awk -v r="$ratio" -v aim="$3" 'BEGIN { exit r < aim }'; then met=true; fi
    [[ $met == true ]] || MISSED=$((MISSED + 1))
    if ((JSON)); then
        printf '{"work": %s, "ours": %s, "unit": "Mpps", "peer": %s, "peer_value": %s, "ratio": %s, "aim": %s, "met": %s}\n' \
            "$(json_string "$work")" "$ours" "$(json_string "$peer")" "$theirs" "$ratio" "$3" "$met" >&"$LAST_LINE"
        return
    fi
    [[ $met == true ]] && met=met || met=MISSED
    printf '%-58s %8s %8s  %-6s %-28s %5sx  %s %s\n' "$work" "$ours" "$theirs" Mpps "$peer" "$ratio" "$3" "$met"
}
MISSED=0

# --- the members of the last line -----------------------------------------------------------------

add_members() {
    local name
    member runs "$RUNS"
    member offered_pkts "$OFFERED_PKTS"
    member forwarded_pkts "$FORWARDED_PKTS"
    member dropped_by_millrace_pkts "$DROPPED_PKTS"
    member unbalanced_runs "$UNBALANCED"
    for name in none nf testpmd bridge; do
        [[ -n ${RATES[$name]-} ]] || continue
        # shellcheck disable=SC2086
        median ${RATES[$name]}
        member "${name}_mpps" "$MEDIAN"
    done
    member aims_missed "$MISSED"
    member backend "$(json_string "$BACKEND")"
    member packet_bytes "$PACKET_BYTES"
    member seed "$SEED"
}
