# shellcheck shell=bash
# `quickstart --once`: sends traffic, checks every claim, keeps the findings for the summary table
# and the JSON line.

PING_PKTS=100
TCP_SECONDS=5

# --- ping and TCP -----------------------------------------------------------------------------

neighbours_reach_each_other() { ip netns exec mrq-a ping -c 1 -W 1 "$ADDRESS_B" >/dev/null 2>&1; }

check_ping() {
    step "ping: $PING_PKTS packets from mrq-a to mrq-b"
    run_child "$STATE/log/ping.log" ip netns exec mrq-a \
        ping -q -i 0.01 -W 2 -c "$PING_PKTS" "$ADDRESS_B" || true
    local sent received rtt
    sent=$(sed -n 's/^\([0-9]*\) packets transmitted.*/\1/p' "$STATE/log/ping.log")
    received=$(sed -n 's/.* transmitted, \([0-9]*\) received.*/\1/p' "$STATE/log/ping.log")
    rtt=$(sed -n 's/^rtt [^=]*= \([0-9.]*\)\/\([0-9.]*\)\/.*/\2/p' "$STATE/log/ping.log")
    sent=${sent:-0} received=${received:-0} rtt=${rtt:-0}
    check "ping" "$received of $sent answered, mean round trip $rtt ms" \
        "sent == PING_PKTS && received == sent"
    member ping_sent "$sent"
    member ping_received "$received"
    member ping_rtt_mean_ms "$rtt"
}

# Sums of bad checksums and bad segments that the two kernels have counted.
count_bad_checksums() {
    local side
    BAD_CHECKSUMS=0 TCP_IN_ERRORS=0
    for side in mrq-a mrq-b; do
        local counts
        # shellcheck disable=SC2016  # the $ are awk's
        counts=$(ip netns exec "$side" awk '
            # Lines come in pairs: names, then values.
            $1 == last { for (i = 2; i <= NF; i++) {
                             if (name[i] == "InCsumErrors") bad += $i
                             if ($1 == "Tcp:" && name[i] == "InErrs") errors += $i } }
            { last = $1; for (i = 2; i <= NF; i++) name[i] = $i }
            END { print bad + 0, errors + 0 }' /proc/net/snmp)
        BAD_CHECKSUMS=$((BAD_CHECKSUMS + ${counts% *}))
        TCP_IN_ERRORS=$((TCP_IN_ERRORS + ${counts#* }))
    done
}

start_iperf_server() {
    spawn "$STATE/log/iperf-server.log" ip netns exec mrq-b iperf3 -s -p 5201 --forceflush
    IPERF_SERVER_PID=$SPAWNED_PID
    await 5 iperf_listens || die "iperf3 does not listen in mrq-b"
}
iperf_listens() { [[ -n $(ip netns exec mrq-b ss -Hltn 'sport = :5201') ]]; }

# check_tcp NAME LABEL ARGUMENTS…: one run of iperf3 from mrq-a. A second in which nothing arrived
# is a stall.
check_tcp() {
    local name=$1 label=$2
    shift 2
    step "TCP: iperf3 $label for $TCP_SECONDS s"
    run_child "$STATE/log/iperf-$name.json" ip netns exec mrq-a \
        iperf3 -J -c "$ADDRESS_B" -p 5201 -t "$TCP_SECONDS" --connect-timeout 3000 "$@" || true
    local -A J=()
    json_load J <"$STATE/log/iperf-$name.json" || true
    if [[ -n ${J[error]-} || -z ${J[end.sum_received.bytes]-} ]]; then
        check "TCP $label" "iperf3: ${J[error]:-gave no result}" 0
        member "tcp_${name}_mbps" 0
        return
    fi
    local interval stalls=0 seconds=0
    for ((interval = 0; interval <= TCP_SECONDS; interval++)); do
        # The last interval may be a sliver of a second; it is none of the five.
        [[ -n ${J[intervals.$interval.sum.bytes]-} ]] || break
        [[ ${J[intervals.$interval.sum.seconds]} != 0.[0-4]* ]] || continue
        seconds=$((seconds + 1))
        [[ ${J[intervals.$interval.sum.bytes]} != 0 ]] || stalls=$((stalls + 1))
    done
    local mbps retransmits=${J[end.sum_sent.retransmits]:-0}
    mbps=$(awk -v bits="${J[end.sum_received.bits_per_second]}" 'BEGIN { printf "%.0f", bits / 1e6 }')
    check "TCP $label" "$mbps Mbit/s, $seconds s, $stalls stalled, $retransmits segments sent again" \
        "mbps > 0 && seconds >= TCP_SECONDS && stalls == 0"
    member "tcp_${name}_mbps" "$mbps"
    member "tcp_${name}_stalled_s" "$stalls"
    member "tcp_${name}_retransmits" "$retransmits"
}

check_checksums() {
    count_bad_checksums
    check "checksums" "$BAD_CHECKSUMS bad, $TCP_IN_ERRORS bad TCP segments, both namespaces" \
        "BAD_CHECKSUMS == 0 && TCP_IN_ERRORS == 0"
    member bad_checksums "$BAD_CHECKSUMS"
    member tcp_in_errors "$TCP_IN_ERRORS"
}

# --- the manager's account --------------------------------------------------------------------

# True when the counters no longer move and nothing is on its way.
traffic_settled() {
    local before=${S[accounting.rx_pkts]-}
    read_status || return 1
    [[ ${S[accounting.rx_pkts]-} == "$before" && ${S[accounting.held_pkts]-} == 0 ]]
}

check_accounting() {
    await 5 traffic_settled || true
    read_status || die "the manager no longer answers"
    local rx lent tx dropped held balanced=0
    count accounting.rx_pkts; rx=$COUNT
    count accounting.lent_pkts; lent=$COUNT
    count accounting.tx_pkts; tx=$COUNT
    count accounting.dropped_pkts; dropped=$COUNT
    count accounting.held_pkts; held=$COUNT
    [[ ${S[accounting.balanced]-} != true ]] || balanced=1
    check "packets accounted for" "rx $rx + lent $lent = tx $tx + dropped $dropped + held $held" \
        "rx > 0 && rx + lent == tx + dropped + held && balanced"
    local i drops=''
    for ((i = 0; ; i++)); do
        [[ -n ${S[drops.$i.reason]-} ]] || break
        drops+="${S[drops.$i.pkts]} ${S[drops.$i.reason]} (${S[drops.$i.place]}), "
    done
    [[ -z $drops ]] || check "drops" "${drops%, }" 1
    member rx_pkts "$rx"
    member lent_pkts "$lent"
    member tx_pkts "$tx"
    member dropped_pkts "$dropped"
    member held_pkts "$held"
    check_nfs "$rx"
}

# Every packet that was not dropped has been through both NFs.
check_nfs() {
    local service rx least=$1
    for service in "${NF_SERVICES[@]}"; do
        index_of nfs service "$service" || { check "NF $service" "is not attached any more" 0; continue; }
        count "nfs.$INDEX.rx_pkts"
        rx=$COUNT
        ((rx >= least)) || least=$rx
        count "nfs.$INDEX.tx_pkts"
        check "NF service $service (forward)" "in $rx, out $COUNT packets" "rx > 0"
    done
    count accounting.dropped_pkts
    check "through both NFs" "at least $least of $1 packets, $COUNT were dropped" "least + COUNT >= $1"
    member nf_pkts "$least"
}

check_clean_exit() {
    stop_chain
    check "manager stops cleanly" "exit code $MANAGER_EXIT after SIGTERM" "MANAGER_EXIT == 0"
}

# --- the three courses --------------------------------------------------------------------------

verify_network() {
    await 10 neighbours_reach_each_other || {
        tail_of "$STATE/log/manager.log"
        die "no ping crosses the chain within 10 s"
    }
    check_ping
    start_iperf_server
    check_tcp forward "mrq-a to mrq-b"
    check_tcp reverse "mrq-b to mrq-a" -R
    stop_child "$IPERF_SERVER_PID" 2 || true
    check_checksums
    check_accounting
    check_clean_exit
}

generator_finished() {
    read_status || return 1
    index_of ports name source
    count "ports.$INDEX.rx_pkts"
    ((COUNT >= GENERATOR_COUNT_PKTS)) && [[ ${S[accounting.held_pkts]-} == 0 ]]
}

verify_generator() {
    step "generating $GENERATOR_COUNT_PKTS packets of $GENERATOR_FRAME_BYTES bytes, $GENERATOR_RATE_PPS a second"
    local seconds=$((GENERATOR_COUNT_PKTS * 4 / GENERATOR_RATE_PPS + 20))
    await "$seconds" generator_finished || warn "not all packets were made and delivered within $seconds s"
    read_status || die "the manager no longer answers"
    index_of ports name source || die "the manager reports no port called source"
    local made arrived good lost reordered repeated corrupt
    count "ports.$INDEX.rx_pkts"; made=$COUNT
    index_of ports name sink || die "the manager reports no port called sink"
    count "ports.$INDEX.tx_pkts"; arrived=$COUNT
    local sink="ports.$INDEX.hw_stats"
    count "$sink.verify_good_pkts"; good=$COUNT
    count "$sink.verify_lost_pkts"; lost=$COUNT
    count "$sink.verify_reordered_pkts"; reordered=$COUNT
    count "$sink.verify_duplicate_pkts"; repeated=$COUNT
    count "$sink.verify_corrupt_pkts"; corrupt=$COUNT
    check "generated" "$made packets" "made == GENERATOR_COUNT_PKTS"
    check "arrived" "$arrived packets, $good of them good" "arrived == made && good == made"
    check "in order, each once, intact" \
        "$lost lost, $reordered out of order, $repeated twice, $corrupt corrupt" \
        "lost + reordered + repeated + corrupt == 0"
    member generated_pkts "$made"
    member arrived_pkts "$arrived"
    member good_pkts "$good"
    member lost_pkts "$lost"
    member reordered_pkts "$reordered"
    check_accounting
    check_clean_exit
}
