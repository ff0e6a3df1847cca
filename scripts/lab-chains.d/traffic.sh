# shellcheck shell=bash
# lab-traffic in the three namespaces, and what its reports say.
#
# Its packets go to addresses that no kernel has, Ethernet and IP, so none answers them.

DST_MAC=02:6d:72:6c:00:fe
TO_HTTP=10.79.9.2 TO_OTHER=10.79.9.3

# Sums over all parts, by the names that the reports use.
declare -A TOTAL=([sent]=0 [received]=0 [lost]=0 [reordered]=0 [duplicated]=0 [invented]=0
    [corrupted]=0 [misdelivered]=0 [mixed]=0)
INVALID=()
LONGEST_DELAY_US=0

# start_traffic PART: receivers first, then the sender; the first phase is 0.
start_traffic() {
    PART=$1 PHASE=0
    RUN_ID=$((SEED * 16 + ${#PART}))
    SENT=$STATE/sent-$PART.json
    # Another seed spreads the flows otherwise over instances.
    local source=10.79.$((10 + SEED % 240)).1
    local kind
    declare -gA RECEIVER_PID=()
    for kind in web/http other/udp; do start_receiver "${kind%/*}" "${kind#*/}"; done
    kernel_drops
    KERNEL_DROPS_BEFORE=$KERNEL_DROPS
    SENDER_LOG=$STATE/log/sender-$PART.json
    spawn "$SENDER_LOG" ip netns exec mrl-client "$BIN_DIR/lab-traffic" send \
        --interface mrl-client0 --dst-mac "$DST_MAC" --from "$source" --to "$TO_HTTP" "$TO_OTHER" \
        --run-id "$RUN_ID" --flows "$FLOWS" --rate-pps "$RATE_PPS" --seed "$SEED" --report "$SENT"
    SENDER_PID=$SPAWNED_PID
    let_traffic_flow
}

start_receiver() {
    local log=$STATE/log/$1-$PART.json
    spawn "$log" ip netns exec "mrl-$1" "$BIN_DIR/lab-traffic" receive --interface "mrl-${1}0" \
        --run-id "$RUN_ID" --kind "$2" --expect "$SENT" --course "$COURSE_A" --course "$COURSE_B"
    RECEIVER_PID[$1]=$SPAWNED_PID
    await 5 grep -q listening "$log" || die "lab-traffic receive does not start in mrl-$1"
}

# counter INTERFACE NAME: sets COUNTER to a counter of the kernel.
counter() { read -r COUNTER <"/sys/class/net/$1/statistics/$2"; }

# What the kernel dropped between Millrace and a receiver: a veth whose other end has no room.
kernel_drops() {
    local side
    KERNEL_DROPS=0
    for side in "${SIDES[@]}"; do
        counter "mrl-$side" tx_dropped
        KERNEL_DROPS=$((KERNEL_DROPS + COUNTER))
    done
}

# let_traffic_flow: until every flow has sent several packets more, however slow the machine is.
# Half of the packets go round all flows, the other half are trains of up to 32.
let_traffic_flow() {
    counter mrl-client rx_packets
    FLOWED_AT=$((COUNTER + 8 * (FLOWS + 32)))
    await 60 enough_flowed || die "the traffic does not flow: $(tail -n 1 "$SENDER_LOG")"
}
enough_flowed() {
    counter mrl-client rx_packets
    ((COUNTER >= FLOWED_AT))
}

# next_phase: from now on packets carry the next number.
next_phase() {
    PHASE=$((PHASE + 1))
    alive "$SENDER_PID" || die "lab-traffic send ended by itself: $(tail -n 1 "$SENDER_LOG")"
    kill -USR1 "$SENDER_PID"
    await 10 grep -q "\"phase\":$PHASE}" "$SENDER_LOG" || die "lab-traffic send does not begin phase $PHASE"
}

# stop_traffic: the sender, then the receivers as they have all that was sent, or all that comes.
# Their reports are then in WEB and OTHER.
declare -A WEB=() OTHER=()
stop_traffic() {
    kill -TERM "$SENDER_PID"
    wait "$SENDER_PID" || die "lab-traffic send failed: $(tail -n 1 "$SENDER_LOG")"
    local side
    for side in web other; do
        wait "${RECEIVER_PID[$side]}" ||
            die "lab-traffic receive failed in mrl-$side: $(tail -n 1 "$STATE/log/$side-$PART.json")"
    done
    json_load WEB < <(tail -n 1 "$STATE/log/web-$PART.json") || die "no report from mrl-web"
    json_load OTHER < <(tail -n 1 "$STATE/log/other-$PART.json") || die "no report from mrl-other"
    kernel_drops
    local dropped=$((KERNEL_DROPS - KERNEL_DROPS_BEFORE))
    ((dropped == 0)) || INVALID+=("the kernel dropped $dropped packets that Millrace had sent")
}

# whole ARRAY KEY: sets WHOLE to a whole number of a report; dies when there is none.
whole() {
    local -n report=$1
    WHOLE=${report[$2]-}
    [[ $WHOLE =~ ^[0-9]{1,18}$ ]] || die "a report of lab-traffic has no number $2"
}

# account: adds the reports of this part up, and checks what must hold in every part.
account() {
    local name report sum lost=0 disorder=0 sent=0 received=0 odd=0
    for report in WEB OTHER; do
        whole "$report" expected
        sent=$((sent + WHOLE))
        for name in received lost reordered duplicated invented corrupted misdelivered mixed; do
            whole "$report" "$name"
            TOTAL[$name]=$((TOTAL[$name] + WHOLE))
            case $name in
                received) received=$((received + WHOLE)) ;;
                lost) lost=$((lost + WHOLE)) ;;
                reordered) disorder=$((disorder + WHOLE)) ;;
                *) odd=$((odd + WHOLE)) ;;
            esac
        done
        whole "$report" delay_us.max
        ((WHOLE <= LONGEST_DELAY_US)) || LONGEST_DELAY_US=$WHOLE
        account_validity "$report"
    done
    TOTAL[sent]=$((TOTAL[sent] + sent))
    check "$PART: packets" "$sent sent, $received received, $lost lost" \
        "sent > 0 && lost == 0 && received == sent"
    check "$PART: order within flows" "$disorder out of order" "disorder == 0"
    check "$PART: one whole chain each" "$odd mixed, altered, doubled or misdelivered" "odd == 0"
    sum=${WEB[mixed_examples.0]-}${OTHER[mixed_examples.0]-}
    [[ -z $sum ]] || warn "a packet that took no chain as a whole: $sum"
}

# A run in which something else lost packets proves nothing, and is not passed as good.
account_validity() {
    local -n checked=$1
    local i
    [[ ${checked[valid]-} != true ]] || return 0
    for ((i = 0; ; i++)); do
        [[ -n ${checked[invalid_because.$i]-} ]] || break
        INVALID+=("${checked[invalid_because.$i]}")
    done
}

# phase_index ARRAY PHASE: sets INDEX to the position of a phase in a report.
phase_index() {
    local -n phases=$1
    for ((INDEX = 0; ; INDEX++)); do
        [[ -n ${phases[phases.$INDEX.phase]-} ]] || return 1
        [[ ${phases[phases.$INDEX.phase]} != "$2" ]] || return 0
    done
}
