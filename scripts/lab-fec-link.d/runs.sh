# shellcheck shell=bash
# The runs: datagrams, requests, and TCP by iperf3, each alone on the link.

APPLICATIONS=$HERE/lab-fec-link.d/applications.py
DATAGRAM_PORT=7001 REQUEST_PORT=7002 IPERF_PORT=5201
# Datagrams: 16 Mbit/s, as of a video conference of some people.
DATAGRAMS_PER_S=2000 DATAGRAM_BYTES=1000
CONNECTIONS=32 INTERVAL_MS=100
declare -A LABEL=([plain]="without FEC" [fec]="with FEC")
# What was measured, as case.run.member.
declare -A R=()

# run_case CASE: plain or fec.
run_case() {
    local case=$1 control
    step "${LABEL[$case]}: millrace up"
    start_manager "$case"
    # Datagrams first: nothing else is then on the link, so that each loss is one of theirs.
    run_datagrams "$case"
    run_requests "$case"
    for control in $(congestion_controls); do run_tcp "$case" "$control"; done
    stop_manager "$case"
}

# congestion_controls: of those that are tried, which the kernel has.
congestion_controls() {
    local name have
    have=" $(</proc/sys/net/ipv4/tcp_available_congestion_control) "
    for name in cubic bbr; do
        if [[ $have == *" $name "* ]]; then echo "$name"; fi
    done
}

# application NAME SIDE ARGUMENTS…: the words that start one in a namespace, ahead of others that want a
# core: the link's delay is asked for, not the machine's.
application() {
    APPLICATION=(ip netns exec "fln-$2" nice -n -10 "$APPLICATIONS" "$1" "${@:3}")
}

run_datagrams() {
    local case=$1 count=$((DATAGRAMS_PER_S * RUN_S)) code=0
    step "${LABEL[$case]}: $count datagrams in $RUN_S s"
    begin_run "$case"
    application receive server "$SERVER" "$DATAGRAM_PORT" "$count"
    spawn "$STATE/log/receive.json" "${APPLICATION[@]}"
    local receiver=$SPAWNED_PID
    await 10 listens u "$DATAGRAM_PORT" || die "the receiver of datagrams does not start"
    application send client "$SERVER" "$DATAGRAM_PORT" "$count" "$DATAGRAMS_PER_S" "$DATAGRAM_BYTES"
    run_child "$STATE/log/send.json" "${APPLICATION[@]}" || die_of send.json "sending datagrams failed"
    wait "$receiver" || code=$?
    ((code == 0)) || die_of receive.json "receiving datagrams failed"
    end_run "$case" datagrams "$(tail -n 1 "$STATE/log/receive.json")"
}

run_requests() {
    local case=$1
    step "${LABEL[$case]}: requests over $CONNECTIONS connections for $RUN_S s"
    begin_run "$case"
    application answer server "$SERVER" "$REQUEST_PORT"
    spawn "$STATE/log/answer.log" "${APPLICATION[@]}"
    local answerer=$SPAWNED_PID
    await 10 listens t "$REQUEST_PORT" || die "the answerer of requests does not start"
    application request client "$SERVER" "$REQUEST_PORT" "$CONNECTIONS" "$INTERVAL_MS" "$RUN_S"
    run_child "$STATE/log/request.json" "${APPLICATION[@]}" || die_of request.json "requests failed"
    stop_child "$answerer" || true
    end_run "$case" requests "$(tail -n 1 "$STATE/log/request.json")"
}

# run_tcp CASE CONTROL
run_tcp() {
    local case=$1 control=$2
    step "${LABEL[$case]}: iperf3 with $control for $RUN_S s"
    begin_run "$case"
    spawn "$STATE/log/iperf-server.log" ip netns exec fln-server iperf3 -s -p "$IPERF_PORT" --one-off
    local iperf_server=$SPAWNED_PID
    await 10 listens t "$IPERF_PORT" || die "iperf3 does not listen in fln-server"
    # The sender is paced, so that what limits it is the link and not how fast this machine is.
    run_child "$STATE/log/iperf.json" ip netns exec fln-client iperf3 -J -c "$SERVER" -p "$IPERF_PORT" \
        -t "$RUN_S" -C "$control" --fq-rate "${RATE_MBIT}M" --connect-timeout 20000 ||
        die_of iperf.json "iperf3 with $control failed"
    stop_child "$iperf_server" 10 || true
    local -A J=()
    json_load J <"$STATE/log/iperf.json" || die_of iperf.json "iperf3 gave no JSON"
    [[ -z ${J[error]-} && ${J[end.sum_received.bits_per_second]-} =~ ^[0-9.]+$ ]] ||
        die "iperf3 with $control: ${J[error]:-gave no result}"
    local again=${J[end.sum_sent.retransmits]-0}
    [[ $again =~ ^[0-9]+$ ]] || again=0
    end_run "$case" "tcp_$control" "$(awk -v "bits=${J[end.sum_received.bits_per_second]}" -v "again=$again" \
        'BEGIN { printf "{\"goodput_mbit\": %.2f, \"segments_sent_again\": %d}", bits / 1e6, again }')"
}

# listens u|t PORT: whether somebody in fln-server listens.
listens() { [[ -n $(server ss "-Hln$1" "sport = :$2") ]]; }

# die_of LOG MESSAGE
die_of() {
    tail_of "$STATE/log/$1"
    die "$2"
}

# begin_run CASE: from now on losses and parity are this run's.
begin_run() {
    totals "$1"
    BEFORE=("${TOTALS[@]}")
}
BEFORE=()

# totals CASE: sets TOTALS to the link's losses, those on the way to the server, data and parity packets of
# both encoders, and packets that were brought back, and that could not be.
totals() {
    link_losses
    TOTALS=("$LINK_LOST" "$LINK_LOST_THERE" 0 0 0 0)
    [[ $1 == fec && $OFF == 0 ]] || return 0
    local name
    for name in a-out b-out; do
        read_counts "$name" counts
        TOTALS[2]=$((TOTALS[2] + ${C[data]-0}))
        TOTALS[3]=$((TOTALS[3] + ${C[parity]-0}))
        UNMADE[$name]=${C[no-buffer]-0}
    done
    for name in a-in b-in; do
        read_counts "$name" counts
        UNMADE[$name]=${C[no-buffer]-0}
        # Of its one peer.
        read_counts "$name" peers
        TOTALS[4]=$((TOTALS[4] + ${C[recovered]-0}))
        TOTALS[5]=$((TOTALS[5] + ${C[unrecovered]-0}))
    done
}
# Packets that found no buffer to be made in, for each FEC NF.
declare -A UNMADE=()

# end_run CASE RUN MEASURED: keeps and prints what was measured, and what the link and the NFs did meanwhile.
end_run() {
    local case=$1 run=$2 measured=$3 key fec=false
    settle
    totals "$case"
    local -a names=(link_lost link_lost_to_server data_pkts parity_pkts recovered_pkts
        unrecovered_pkts)
    local line at here=''
    [[ $case != fec ]] || fec=true
    for at in "${!names[@]}"; do
        ((at < 2)) || [[ $fec == true ]] || continue
        here+=", \"${names[at]}\": $((TOTALS[at] - BEFORE[at]))"
    done
    line="{\"run\": \"$run\", \"fec\": $fec$here, ${measured#"{"}"
    local -A J=()
    json_load J <<<"$line" || die "$run: not what was expected: $measured"
    for key in "${!J[@]}"; do R[$case.$run.$key]=${J[$key]}; done
    if ((JSON)); then printf '%s\n' "$line" >&"$LAST_LINE"; fi
}
