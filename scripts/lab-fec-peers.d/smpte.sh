# shellcheck shell=bash
# SMPTE ST 2022-1: ffmpeg's repair packets and our decoder; ours and GStreamer's.
#
#   ffmpeg (prompeg)            ══ loss ══► fec-smpte repair ──► captured
#   ffmpeg ── fec-smpte protect ══ loss ══► rtpst2022-1-fecdec ──► captured on fdx-far's loopback
#
# What was sent, what came and what was brought back are compared byte for byte, from captures.

# Where GStreamer sends what it has put together.
RESTORED_PORT=7000

run_smpte() {
    run_theirs_to_ours
    run_ours_to_theirs
}

# capture NAME NAMESPACE INTERFACE PORT: what goes to a UDP port, into NAME.pcap, until `end_captures`.
CAPTURES=()
capture() {
    spawn "$STATE/log/capture-$1.log" ip netns exec "$2" tcpdump -i "$3" -nn -s 0 -B 16384 \
        --immediate-mode -U -Z root -w "$STATE/$1.pcap" "udp dst port $4"
    CAPTURES+=("$SPAWNED_PID")
    await 10 grep -q 'listening on' "$STATE/log/capture-$1.log" || die "tcpdump does not start on $3"
}

end_captures() {
    local pid
    # What is on its way arrives, also on a machine that has other work.
    CAPTURED_BYTES=0
    await 20 captures_stand || warn "packets still come in"
    for pid in "${CAPTURES[@]}"; do stop_child "$pid" || true; done
    CAPTURES=()
}

# captures_stand: true when no capture has grown for a second.
captures_stand() {
    local before=$CAPTURED_BYTES
    CAPTURED_BYTES=$(cat -- "$STATE"/*.pcap | wc -c)
    ((CAPTURED_BYTES == before)) || { sleep 1; return 1; }
}
CAPTURED_BYTES=0

# rtp_lines NAME: the RTP packets of a capture, each once, a line of hexadecimal each.
rtp_lines() {
    tcpdump -nn -t -x -r "$STATE/$1.pcap" 2>/dev/null | awk '
        # Behind 20 bytes of IPv4 and 8 of UDP.
        function put() { if (hex != "") print substr(hex, 57); hex = "" }
        /^[^\t ]/ { put() }
        /^[\t ]+0x/ { for (i = 2; i <= NF; i++) hex = hex $i }
        END { put() }' | LC_ALL=C sort -u
}

# without_ssrc: RTP lines without the SSRC, which GStreamer does not bring back.
without_ssrc() { cut -c 1-16,25- | LC_ALL=C sort -u; }

# lines_only_in FILE OTHER: how many lines of FILE are not in OTHER.
lines_only_in() { LC_ALL=C comm -23 "$1" "$2" | wc -l; }

# stream PORT OPTION…: a television picture for STREAM_S seconds, by RTP to a UDP port of fdx-far.
stream() {
    local port=$1
    shift
    run_child "$STATE/log/ffmpeg-$port.log" ip netns exec fdx-near ffmpeg -nostdin -hide_banner \
        -loglevel warning -re -f lavfi -i testsrc2=size=640x360:rate=25 -t "$STREAM_S" \
        -c:v mpeg2video -b:v 2M -minrate 2M -maxrate 2M -bufsize 500k -f rtp_mpegts "$@" \
        "rtp://$FAR:$port?pkt_size=1328" || {
        tail_of "$STATE/log/ffmpeg-$port.log"
        die "ffmpeg failed"
    }
}

# listen PORT…: somebody takes what comes, so that nobody answers that nobody does.
LISTENERS=()
listen() {
    local port
    for port in "$@"; do
        spawn "$STATE/log/listen.log" ip netns exec fdx-far socat -u "UDP-RECV:$port,rcvbuf=4000000" \
            OPEN:/dev/null
        LISTENERS+=("$SPAWNED_PID")
        await 5 udp_listens "$port" || die "socat does not listen on port $port"
    done
}
udp_listens() { [[ -n $(far ss -Hlun "sport = :$1") ]]; }

end_listeners() {
    local pid
    for pid in "${LISTENERS[@]}"; do stop_child "$pid" || true; done
    LISTENERS=()
}

run_theirs_to_ours() {
    step "ffmpeg's repair packets to ours: $STREAM_S s of MPEG-TS by RTP"
    listen "$THEIRS_PORT" $((THEIRS_PORT + 1)) $((THEIRS_PORT + 2)) $((THEIRS_PORT + 4))
    capture sent fdx-near fdx-near0 "$THEIRS_PORT"
    capture received fdx-far fdx-far0 "$THEIRS_PORT"
    stream "$THEIRS_PORT" -fec "prompeg=l=$COLUMNS_L:d=$ROWS_D"
    end_captures
    end_listeners
    rtp_lines sent >"$STATE/sent"
    rtp_lines received >"$STATE/received"
    local sent residual strange arrived recovered errors
    sent=$(wc -l <"$STATE/sent") residual=$(lines_only_in "$STATE/sent" "$STATE/received")
    strange=$(lines_only_in "$STATE/received" "$STATE/sent")
    read_counts smpte-repair
    arrived=${C[media]-$((sent - residual))} recovered=${C[recovered]-0}
    errors=$((${C[implausible]-0} + ${C[rejected]-0} + ${C[no_buffer_pkts]-0}))
    judge_stream "ffmpeg to ours" ffmpeg_to_ours "$sent" "$((sent - arrived))" "$recovered" "$residual" \
        "$strange" "$errors"
}

run_ours_to_theirs() {
    step "our repair packets to GStreamer: $STREAM_S s of MPEG-TS by RTP"
    listen $((OURS_PORT + 1)) "$RESTORED_PORT"
    start_gstreamer
    capture sent fdx-near fdx-near0 "$OURS_PORT"
    capture arrived fdx-far fdx-far0 "$OURS_PORT"
    capture restored fdx-far lo "$RESTORED_PORT"
    stream "$OURS_PORT"
    end_captures
    stop_child "$GSTREAMER_PID" || true
    end_listeners
    local name
    for name in sent arrived restored; do rtp_lines "$name" | without_ssrc >"$STATE/$name"; done
    LC_ALL=C comm -23 "$STATE/sent" "$STATE/arrived" >"$STATE/lost"
    local sent lost residual strange
    sent=$(wc -l <"$STATE/sent") lost=$(wc -l <"$STATE/lost")
    residual=$(lines_only_in "$STATE/lost" "$STATE/restored")
    strange=$(lines_only_in "$STATE/restored" "$STATE/sent")
    read_counts smpte-protect
    judge_stream "ours to GStreamer" ours_to_gstreamer "$sent" "$lost" "$((lost - residual))" "$residual" \
        "$strange" "$((${C[no_buffer_pkts]-0} + ${C[broken_matrices]-0} + ${C[unprotected]-0}))"
    # On a busy machine GStreamer may come too late to its socket.
    local missing
    missing=$(lines_only_in "$STATE/arrived" "$STATE/restored")
    check "GStreamer's socket" "$missing packets that arrived did not come out, $(overflows) had no room there" \
        "missing <= $(overflows)"
}

# overflows: datagrams that found no room in a socket of fdx-far.
overflows() {
    far cat /proc/net/snmp | awk '
        $1 == "Udp:" && !column { for (i = 2; i <= NF; i++) if ($i == "RcvbufErrors") column = i; next }
        $1 == "Udp:" { print $column + 0 }'
}
GSTREAMER_PID=0

start_gstreamer() {
    local caps=application/x-rtp,media=video,clock-rate=90000,encoding-name=MP2T,payload=33
    local fec=application/x-rtp,media=application,clock-rate=90000,payload=96
    spawn "$STATE/log/gstreamer.log" ip netns exec fdx-far nice -n -10 gst-launch-1.0 \
        rtpst2022-1-fecdec name=dec size-time=2000000000 ! udpsink host=127.0.0.1 \
        "port=$RESTORED_PORT" sync=false async=false \
        udpsrc "port=$OURS_PORT" "caps=$caps" buffer-size=4000000 ! dec.sink \
        udpsrc "port=$((OURS_PORT + 2))" "caps=$fec" ! dec.fec_0 \
        udpsrc "port=$((OURS_PORT + 4))" "caps=$fec" ! dec.fec_1
    GSTREAMER_PID=$SPAWNED_PID
    local port
    for port in 0 2 4; do
        await 15 udp_listens $((OURS_PORT + port)) || {
            tail_of "$STATE/log/gstreamer.log"
            die "GStreamer does not listen"
        }
    done
}

# judge_stream WHAT MEMBER SENT LOST RECOVERED RESIDUAL STRANGE ERRORS
judge_stream() {
    local sent=$3 lost=$4 recovered=$5 residual=$6 strange=$7 errors=$8
    check "$1" "of $sent packets $lost lost, $recovered brought back, $residual not, $errors errors" \
        "lost > 0 && recovered > 0 && recovered == lost - residual && residual * 4 <= lost && errors == 0"
    check "$1: the bytes" "$strange packets that nobody sent" "strange == 0"
    member "$2" "{\"sent\": $sent, \"lost\": $lost, \"recovered\": $recovered, \"residual\": $residual}"
}
