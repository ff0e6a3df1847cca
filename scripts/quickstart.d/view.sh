# shellcheck shell=bash
# The live view: what crosses the chain now, once a second. On a terminal it is redrawn in place;
# elsewhere one line a second is printed.

# Counters of the last sample and when it was taken, µs.
declare -A BEFORE=()
BEFORE_US=0
DRAWN_LINES=0
DRAWN_COLUMNS=0

# rate KEY: sets RATE to S[KEY]'s growth a second since the last sample.
rate() {
    count "$1"
    RATE=$(((COUNT - ${BEFORE[$1]:-$COUNT}) * 1000000 / ELAPSED_US))
    # A port or an NF that restarted counts from zero.
    ((RATE >= 0)) || RATE=0
}

# grouped NUMBER: 1234567 as 1,234,567, into GROUPED.
grouped() {
    GROUPED=$1
    while [[ $GROUPED =~ ^([0-9]+)([0-9]{3}.*)$ ]]; do
        GROUPED=${BASH_REMATCH[1]},${BASH_REMATCH[2]}
    done
}

# row NAME PKTS_KEY BYTES_KEY DROPS: one line of the table into LINES_OUT. An empty key leaves its
# columns empty.
row() {
    local pps='' mbps='' pkts=''
    if [[ -n $2 ]]; then
        rate "$2"
        grouped "$RATE"
        pps=$GROUPED
        grouped "${S[$2]:-0}"
        pkts=$GROUPED
    fi
    if [[ -n $3 ]]; then
        rate "$3"
        grouped $((RATE * 8 / 1000000))
        mbps=$GROUPED
    fi
    LINES_OUT+=("$(printf '%-22s %12s %10s %16s  %s' "$1" "$pps" "$mbps" "$pkts" "$4")")
}

# drops_of PREFIX: the drops below PREFIX in words, into DROPS.
drops_of() {
    local key
    DROPS=''
    for key in "${!S[@]}"; do
        [[ $key == "$1."* ]] || continue
        count "$key"
        ((COUNT == 0)) || DROPS+="$COUNT ${key##*.} "
    done
}

# drops_at PLACE: the drops that the ledger has for PLACE in words, into DROPS.
drops_at() {
    local i
    DROPS=''
    for ((i = 0; ; i++)); do
        [[ -n ${S[drops.$i.place]-} ]] || break
        [[ ${S[drops.$i.place]} != "$1" ]] || DROPS+="${S[drops.$i.pkts]} ${S[drops.$i.reason]} "
    done
}

compose() {
    local i label
    LINES_OUT=("$(printf '%-22s %12s %10s %16s  %s' '' 'packets/s' 'Mbit/s' 'packets' 'drops')")
    for ((i = 0; ; i++)); do
        [[ -n ${S[ports.$i.name]-} ]] || break
        drops_of "ports.$i.drops"
        label="port ${S[ports.$i.name]}"
        [[ ${S[ports.$i.link]-up} == up ]] || label+=" (${S[ports.$i.link]})"
        row "$label  in" "ports.$i.rx_pkts" "ports.$i.rx_bytes" "$DROPS"
        row "${label//?/ }  out" "ports.$i.tx_pkts" "ports.$i.tx_bytes" ''
    done
    local service
    for service in "${NF_SERVICES[@]}"; do
        drops_at "service:$service"
        if index_of nfs service "$service"; then
            row "NF ${S[nfs.$INDEX.name]} (service $service)" "nfs.$INDEX.rx_pkts" '' "$DROPS"
        else
            row "NF of service $service: none" '' '' "$DROPS"
        fi
    done
    local account
    printf -v account 'account: in %s = out %s + dropped %s + held %s' \
        "${S[accounting.rx_pkts]-}" "${S[accounting.tx_pkts]-}" \
        "${S[accounting.dropped_pkts]-}" "${S[accounting.held_pkts]-}"
    LINES_OUT+=("$account")
    [[ -z ${TRAFFIC_NOTE-} ]] || LINES_OUT+=("$TRAFFIC_NOTE")
}

# Redraws in place; every line is cut to the terminal's width, or the cursor would lose count.
draw() {
    local line columns
    columns=$(tput cols 2>/dev/null) || columns=80
    # After a resize the old lines may be folded: begin anew below them.
    [[ $columns == "$DRAWN_COLUMNS" ]] || DRAWN_LINES=0
    DRAWN_COLUMNS=$columns
    ((DRAWN_LINES == 0)) || printf '\e[%dA' "$DRAWN_LINES"
    for line in "${LINES_OUT[@]}"; do printf '\r%s\e[K\n' "${line:0:columns-1}"; done
    # Fewer lines than before: an NF has gone.
    printf '\e[J'
    DRAWN_LINES=${#LINES_OUT[@]}
}

print_line() {
    local i text=''
    for ((i = 0; ; i++)); do
        [[ -n ${S[ports.$i.name]-} ]] || break
        rate "ports.$i.rx_pkts"
        text+="${S[ports.$i.name]} in $RATE pkt/s"
        rate "ports.$i.rx_bytes"
        text+=" $((RATE * 8 / 1000000)) Mbit/s, "
    done
    printf '%s%s NFs, dropped %s, held %s  %s\n' "$text" "$(count_nfs)" \
        "${S[accounting.dropped_pkts]-}" "${S[accounting.held_pkts]-}" "${TRAFFIC_NOTE-}"
}

count_nfs() {
    local n=0
    while [[ -n ${S[nfs.$n.service]-} ]]; do n=$((n + 1)); done
    printf '%s' "$n"
}

# sample: reads the counters, shows them, keeps them for the next time.
sample() {
    local now_us key
    read_status || return 1
    now_us=${EPOCHREALTIME/[.,]/}
    ELAPSED_US=$((BEFORE_US ? now_us - BEFORE_US : 1000000))
    if [[ -t 1 ]]; then
        compose
        draw
    else
        print_line
    fi
    BEFORE_US=$now_us
    BEFORE=()
    for key in "${!S[@]}"; do
        count "$key"
        BEFORE[$key]=$COUNT
    done
}

# --- the traffic that is looked at ----------------------------------------------------------------

# Ping five times a second, and TCP both ways at once, begun again should it end.
start_traffic() {
    start_iperf_server
    spawn "$STATE/log/ping.log" ip netns exec mrq-a ping -i 0.2 "$ADDRESS_B"
    PING_PID=$SPAWNED_PID
    start_tcp
}
PING_PID='' TCP_PID=''

start_tcp() {
    spawn "$STATE/log/iperf-client.log" ip netns exec mrq-a \
        iperf3 -c "$ADDRESS_B" -p 5201 -t 86400 --bidir --connect-timeout 3000
    TCP_PID=$SPAWNED_PID
}

# What ping and TCP say of themselves, into TRAFFIC_NOTE.
look_at_traffic() {
    [[ -n $PING_PID ]] || return 0
    local last
    last=$(tail -n 1 "$STATE/log/ping.log" 2>/dev/null)
    local silent_s
    silent_s=$(($(date +%s) - $(stat -c %Y -- "$STATE/log/ping.log")))
    if ((silent_s > 2)); then
        TRAFFIC_NOTE="ping: no answer for $silent_s s"
    elif [[ $last == *icmp_seq=* ]]; then
        TRAFFIC_NOTE="ping: ${last#*bytes from }; TCP both ways (iperf3)"
    fi
    if ! alive "$TCP_PID"; then
        TRAFFIC_NOTE="TCP ended: $(tail -n 1 "$STATE/log/iperf-client.log"); starting it again"
        start_tcp
    fi
}

# watch_live: until Ctrl-C, or until the manager ends.
watch_live() {
    [[ $BACKEND == generator ]] || start_traffic
    step "live; Ctrl-C ends it and cleans up"
    note "${BIN_DIR#"$PWD"/}/millrace --socket $SOCKET status"
    printf '\n'
    while alive "$MANAGER_PID"; do
        look_at_traffic
        sample || true
        sleep 1
    done
    local code=0
    wait "$MANAGER_PID" || code=$?
    tail_of "$STATE/log/manager.log"
    die "the manager ended by itself (exit code $code)"
}
