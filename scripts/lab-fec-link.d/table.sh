# shellcheck shell=bash
# What the runs show: the table, what must hold, and the members of the last line.

# got CASE RUN MEMBER: sets GOT to a figure as it was measured, or to nothing.
got() {
    GOT=${R[$1.$2.$3]-}
    [[ $GOT =~ ^[0-9]+(\.[0-9]+)?$ ]] || GOT=''
}

# cell CASE RUN MEMBER UNIT: sets CELL to the figure with its unit.
cell() {
    got "$1" "$2" "$3"
    CELL=${GOT:+$GOT${4:+ $4}}
    [[ -n $CELL || -z ${R[$1.$2.run]-} ]] || CELL=never
    CELL=${CELL:--}
}

# line LABEL RUN MEMBER UNIT
line() {
    local plain
    cell plain "$2" "$3" "$4"
    plain=$CELL
    cell fec "$2" "$3" "$4"
    note "$(printf '%-52s %16s %16s' "$1" "$plain" "$CELL")"
}

print_table() {
    ((${#R[@]})) || return 0
    step "a link of $DELAY_MS ms one way that loses $LOSS of all packets; FEC $K+$M, seed $SEED, $RUN_S s each"
    note "$(printf '%-52s %16s %16s' '' "${LABEL[plain]}" "${LABEL[fec]}")"
    local control
    for control in $(congestion_controls); do
        line "TCP goodput, $control" "tcp_$control" goodput_mbit Mbit/s
        line "    segments sent again" "tcp_$control" segments_sent_again ""
    done
    line "datagrams missing, of $((DATAGRAMS_PER_S * RUN_S))" datagrams missing ""
    line "    half of those that came took less than" datagrams p50_ms ms
    line "    99 % of those that came took less than" datagrams p99_ms ms
    line "    99 % of all that were sent had come after" datagrams p99_of_sent_ms ms
    line "requests: half were answered within" requests p50_ms ms
    line "    99 % within" requests p99_ms ms
    line "    all within" requests max_ms ms
    local run
    for run in datagrams requests tcp_cubic; do
        parity_share "$run"
        note "$(printf '%-52s %16s %16s' "parity packets for a data packet, $run" - "$SHARE")"
    done
}

# parity_share RUN: sets SHARE.
parity_share() {
    local parity
    SHARE=-
    got fec "$1" parity_pkts; parity=$GOT
    got fec "$1" data_pkts
    [[ -z $GOT || $GOT == 0 ]] || SHARE=$(awk -v "p=$parity" -v "d=$GOT" 'BEGIN { printf "%.2f", p / d }')
}

# judge: what must hold once all runs are complete.
judge() {
    local without with lost unmade=0 name count
    got plain datagrams missing; without=${GOT:-0}
    got plain datagrams link_lost_to_server; lost=${GOT:-0}
    check "without FEC: datagrams" "$without missing, $lost lost by the link" "without > 0 && without == lost"
    got fec datagrams missing; with=${GOT:-$without}
    check "datagrams missing" "$without without FEC, $with with it" "with * 10 <= without"
    got fec datagrams twice; check "datagrams twice" "${GOT:-?} with FEC" "${GOT:-1} == 0"
    for name in "${CASES[@]}"; do
        got "$name" requests missing
        check "${LABEL[$name]}: requests" "${GOT:-?} unanswered" "${GOT:-1} == 0"
    done
    goodput_ratio cubic
    check "TCP goodput, cubic" "$RATIO times with FEC" \
        "$(awk -v "ratio=$RATIO" 'BEGIN { print (ratio > 1) }')"
    for count in "${UNMADE[@]}"; do unmade=$((unmade + count)); done
    check "buffers for parity" "$unmade packets found none" "unmade == 0"
}

# goodput_ratio CONTROL: sets RATIO to the goodput with FEC over that without, or to 0.
goodput_ratio() {
    local without
    got plain "tcp_$1" goodput_mbit; without=$GOT
    got fec "tcp_$1" goodput_mbit
    RATIO=$(awk -v "with=${GOT:-0}" -v "without=${without:-0}" \
        'BEGIN { ratio = 0; if (without > 0) ratio = with / without; printf "%.2f", ratio }')
}

# add_members: the last line says what was run, and the figures in short.
add_members() {
    local case control
    member loss "$LOSS"
    member k "$K"
    member m "$M"
    member delay_ms "$DELAY_MS"
    member rate_mbit "$RATE_MBIT"
    member seconds "$RUN_S"
    member seed "$SEED"
    for case in "${CASES[@]}"; do
        one_member "$case" datagrams missing
        one_member "$case" datagrams p99_ms
        one_member "$case" requests p99_ms
    done
    for control in $(congestion_controls); do
        [[ -n ${R[fec.tcp_$control.run]-} ]] || continue
        goodput_ratio "$control"
        member "goodput_ratio_$control" "$RATIO"
    done
}

# one_member CASE RUN MEMBER
one_member() {
    got "$1" "$2" "$3"
    [[ -z $GOT ]] || member "$1_$2_$3" "$GOT"
}
