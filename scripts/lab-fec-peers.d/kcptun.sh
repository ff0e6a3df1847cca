# shellcheck shell=bash
# kcptun: a client that knows no error correction, ours before it, a server that does.
#
#   socat ── kcptun-client ──► fec-kcptun add   ══ loss ══►  kcptun-server ── socat (echoes)
#                          ◄── fec-kcptun strip ◄══ loss ══

TCP_PORT=12948 ECHO_PORT=12949

run_kcptun() {
    step "kcptun: $FILE_KB kB there and back"
    start_kcptun
    echo_file
    local same=0
    if cmp -s "$STATE/file" "$STATE/back"; then same=1; fi
    check "kcptun: the file" "$FILE_KB kB there and back, $( ((same)) && echo "as it was" || echo "changed or cut")" same
    judge_kcptun
    stop_kcptun
}

start_kcptun() {
    local -a common=(--crypt none --nocomp --snmpperiod 1)
    spawn "$STATE/log/echo.log" ip netns exec fdx-far \
        socat "TCP-LISTEN:$ECHO_PORT,bind=127.0.0.1,fork,reuseaddr" EXEC:cat
    KCPTUN_PIDS=("$SPAWNED_PID")
    spawn "$STATE/log/kcptun-server.log" ip netns exec fdx-far kcptun-server "${common[@]}" \
        --listen ":$KCP_PORT" --target "127.0.0.1:$ECHO_PORT" \
        --datashard "$DATA_SHARDS" --parityshard "$PARITY_SHARDS" --snmplog "$STATE/server.csv"
    KCPTUN_PIDS+=("$SPAWNED_PID")
    spawn "$STATE/log/kcptun-client.log" ip netns exec fdx-near kcptun-client "${common[@]}" \
        --localaddr "127.0.0.1:$TCP_PORT" --remoteaddr "$FAR:$KCP_PORT" \
        --datashard 0 --parityshard 0 --snmplog "$STATE/client.csv"
    KCPTUN_PIDS+=("$SPAWNED_PID")
    await 10 kcptun_listens || die "kcptun does not listen: $(tail -n 1 "$STATE/log/kcptun-client.log")"
}

kcptun_listens() {
    [[ -n $(far ss -Hltn "sport = :$ECHO_PORT") && -n $(far ss -Hlun "sport = :$KCP_PORT") &&
        -n $(near ss -Hltn "sport = :$TCP_PORT") ]]
}

# kcptun ends both ways of a connection when one ends: it is kept open until all is back.
echo_file() {
    local bytes=$((FILE_KB * 1000))
    head -c "$bytes" /dev/urandom >"$STATE/file"
    spawn "$STATE/log/transfer.log" ip netns exec fdx-near \
        "$HERE/lab-fec-peers.d/echo-through" "$TCP_PORT" "$STATE/file" "$STATE/back"
    local pid=$SPAWNED_PID started=${EPOCHREALTIME/[.,]/}
    await 120 file_is_back "$bytes" || true
    TRANSFER_MS=$(((${EPOCHREALTIME/[.,]/} - started) / 1000))
    stop_child "$pid" || true
    # kcptun writes its counts once a second.
    counts_stand || warn "kcptun-server has not written its counts"
}

file_is_back() { [[ -e $STATE/back && $(stat -c %s "$STATE/back") -ge $1 ]]; }

counts_stand() {
    local before
    before=$(count_lines)
    await 4 more_lines_than "$before"
}
count_lines() { cat -- "$STATE/server.csv" 2>/dev/null | wc -l; }
more_lines_than() { (($(count_lines) > $1 && $(count_lines) > 1)); }

# snmp_count FILE COLUMN: sets COUNT to the newest value of one of kcptun's counts.
snmp_count() {
    COUNT=$(awk -F , -v name="$2" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) column = i }
        NR > 1 && column { value = $column }
        END { print value + 0 }' "$1" 2>/dev/null) || COUNT=0
    [[ $COUNT =~ ^[0-9]{1,18}$ ]] || COUNT=0
}

judge_kcptun() {
    local sent parity theirs ours lost residual errors lost_there
    read_losses wan-b
    lost_there=$COUNT
    read_counts kcptun-add
    sent=${C[data]-0} parity=${C[parity]-0}
    snmp_count "$STATE/server.csv" FECErrs
    errors=$COUNT
    snmp_count "$STATE/server.csv" FECRecovered
    theirs=$COUNT
    check "kcptun: there" "$sent data, $parity parity packets, $lost_there lost; it brought $theirs back, $errors errors" \
        "lost_there > 0 && theirs * 2 >= lost_there && errors == 0"
    read_counts kcptun-strip
    ours=${C[recovered]-0} residual=${C[unrecovered]-0}
    lost=$((ours + residual))
    errors=$((${C[implausible]-0} + ${C[out_of_step]-0} + ${C[rejected]-0} + ${C[no_buffer_pkts]-0}))
    check "kcptun: back" "of $((${C[data]-0} + lost)) data packets $lost lost, $ours brought back by ours, $errors errors" \
        "ours > 0 && errors == 0 && residual * 4 <= lost"
    member kcptun "{\"transfer_ms\": $TRANSFER_MS, \"there\": {\"sent\": $((sent + parity)), \
\"lost\": $lost_there, \"recovered\": $theirs}, \"back\": {\"sent\": $((${C[data]-0} + lost)), \"lost\": $lost, \
\"recovered\": $ours, \"residual\": $residual}}"
}

stop_kcptun() {
    local pid
    for pid in "${KCPTUN_PIDS[@]}"; do stop_child "$pid" || true; done
}
KCPTUN_PIDS=() TRANSFER_MS=0
