# shellcheck shell=bash
# The lab: three namespaces, the configuration files, the manager with its NFs, a web server.
#
#   mrl-client 10.79.0.1 ── [client]          [web] ── mrl-web 10.79.0.2
#                                   manager
#                                     ▲ ▼    [other] ── mrl-other 10.79.0.3
#                     a1 a2    b1 b2 b3 b4    (millrace-nf stamp, an ordinary user each)
#
# What `straight.toml` sends through a1 a2 (HTTP) and b1 b2 b3 b4 (all else), `swapped.toml` sends
# through the other chain. Answers take the same services backwards.

BINARIES+=(lab-traffic)
PACKAGES+=(millrace-benches)
NF_USER=nobody
SIDES=(client web other)
declare -A ADDRESS=([client]=10.79.0.1 [web]=10.79.0.2 [other]=10.79.0.3)
# Services by id, and the two courses as trails show them.
declare -A SERVICE_ID=([a1]=1 [a2]=2 [b1]=3 [b2]=4 [b3]=5 [b4]=6)
COURSE_A=1,2 COURSE_B=3,4,5,6

make_lab() {
    local side peer number=1
    step "making namespaces mrl-client, mrl-web and mrl-other, joined by nothing but the manager"
    for side in "${SIDES[@]}"; do
        make_side "mrl-$side" "${ADDRESS[$side]}" "$number"
        number=$((number + 1))
    done
    # A request for an address would go where all else goes: to the other server alone.
    for side in "${SIDES[@]}"; do
        for peer in "${SIDES[@]}"; do
            [[ $peer != "$side" ]] || continue
            ip -n "mrl-$side" neigh replace "${ADDRESS[$peer]}" dev "mrl-${side}0" nud permanent \
                lladdr "$(ip netns exec "mrl-$peer" cat "/sys/class/net/mrl-${peer}0/address")"
        done
    done
    install_nf_binary
    SOCKET=$STATE/manager.sock
    write_config straight a1,a2 b1,b2,b3,b4
    write_config swapped b1,b2,b3,b4 a1,a2
}

# quoted NAMES: a,b as "a", "b".
quoted() { printf '"%s"' "${1//,/\", \"}"; }

# backwards NAMES: a,b,c as c,b,a.
backwards() {
    local text='' name
    for name in ${1//,/ }; do text=$name${text:+,}$text; done
    printf '%s' "$text"
}

# port_config NAME EGRESS DESCRIPTORS
port_config() {
    printf '\n[[port]]\nname = "%s"\negress = "%s"\nbackend = "af_xdp"\ninterface = "mrl-%s"\n' \
        "$1" "$2" "$1"
    printf 'ring_descriptors = %s\n' "$3"
}

# chain_config NAME SERVICES END
chain_config() {
    printf '\n[[chain]]\nname = "%s"\nservices = [%s]\nend = "out:%s"\n' "$1" "$(quoted "$2")" "$3"
}

# rule_config NAME PRIORITY MATCH CHAIN
rule_config() {
    printf '\n[[rule]]\nname = "%s"\npriority = %s\nmatch = { %s }\nthen = { chain = "%s" }\n' "$@"
}

# write_config FILE HTTP_SERVICES OTHER_SERVICES
write_config() {
    local service
    {
        printf '[manager]\nsocket = "%s"\nsocket_group = "nogroup"\n' "$SOCKET"
        # A dozen processes share what cores there are. Rings hold most of a second of traffic, so
        # that a process that has to wait for its turn loses nothing, and what is lost is lost by us.
        printf 'workers = 1\npoll = "adaptive"\nring_capacity = 16384\n'
        printf '\n[pool]\nbuffers = 65536\nhugepages = "off"\n'
        port_config client other 16384
        [[ -z $FAULT ]] || printf 'fault = { %s = 0.001, seed = %s }\n' "$FAULT" "$SEED"
        port_config web client 8192
        port_config other client 8192
        for service in a1 a2 b1 b2 b3 b4; do
            printf '\n[[service]]\nname = "%s"\nid = %s\ncommand = ["%s", "stamp"]\nuser = "%s"\n' \
                "$service" "${SERVICE_ID[$service]}" "$NF_BINARY" "$NF_USER"
        done
        chain_config web "$2" web
        chain_config default "$3" other
        chain_config from-web "$(backwards "$2")" client
        chain_config from-other "$(backwards "$3")" client
        rule_config http 10 'in_port = "client", ip_proto = "tcp", tp_dst = 80' web
        rule_config from-web 10 'in_port = "web"' from-web
        rule_config from-other 10 'in_port = "other"' from-other
    } >"$STATE/$1.toml"
}

# millrace ARGUMENTS…: the command, against this lab's manager.
millrace() { "$BIN_DIR/millrace" --socket "$SOCKET" "$@"; }

# instances_of SERVICE: sets INSTANCES to how many get flows, and DRAINING to how many leave.
instances_of() {
    INSTANCES=0 DRAINING=0
    index_of services name "$1" || return 1
    while [[ -n ${S[services.$INDEX.instances.$INSTANCES]-} ]]; do INSTANCES=$((INSTANCES + 1)); done
    while [[ -n ${S[services.$INDEX.draining.$DRAINING]-} ]]; do DRAINING=$((DRAINING + 1)); done
}

# service_settled SERVICE N: N instances get flows, none is leaving, and no change is under way.
service_settled() {
    read_status || return 1
    instances_of "$1" || return 1
    ((INSTANCES == $2 && DRAINING == 0)) && [[ ${S[plan.changing]-} == false ]]
}

# `up` comes back when all that the file wants is running, or has stopped it all again.
start_manager() {
    step "millrace up straight.toml: HTTP through a1 a2, all else through b1 b2 b3 b4"
    local answer
    answer=$("$BIN_DIR/millrace" --json up "$STATE/straight.toml" 2>"$STATE/log/up.log") || {
        tail_of "$STATE/log/up.log"
        die "millrace up failed"
    }
    local -A up=()
    json_load up <<<"$answer" || die "millrace up: the answer is no JSON: $answer"
    MANAGER_PID=${up[pid]-}
    [[ $MANAGER_PID =~ ^[0-9]+$ ]] || die "millrace up: the answer has no pid: $answer"
    read_status || die "the manager does not answer"
    check_nf_user
    start_web_server
    check_ping
}
MANAGER_PID=''

check_nf_user() {
    local i wanted others=0
    wanted=$(id -u "$NF_USER")
    for ((i = 0; ; i++)); do
        [[ -n ${S[nfs.$i.uid]-} ]] || break
        [[ ${S[nfs.$i.uid]} == "$wanted" ]] || others=$((others + 1))
    done
    check "NFs" "$i processes, $others of them not as user $NF_USER" "i == 6 && others == 0"
}

# What is neither HTTP nor made by lab-traffic crosses too.
check_ping() {
    local received
    received=$(ip netns exec mrl-client ping -q -c 10 -i 0.02 -W 2 "${ADDRESS[other]}" 2>/dev/null |
        sed -n 's/.* transmitted, \([0-9]*\) received.*/\1/p') || true
    received=${received:-0}
    check "ping the other server" "$received of 10 answered" "received == 10"
}

# --- a real web server, fetched from now and then ----------------------------------------------

start_web_server() {
    HTTP=0
    if ! command -v curl >/dev/null || ! command -v python3 >/dev/null; then
        note "skipped: fetching by HTTP needs curl and python3"
        return
    fi
    mkdir -- "$STATE/www"
    head -c 1000000 /dev/urandom >"$STATE/www/file"
    spawn "$STATE/log/web-server.log" ip netns exec mrl-web \
        python3 -m http.server 80 --bind "${ADDRESS[web]}" --directory "$STATE/www"
    await 10 web_server_listens || die "python3 -m http.server does not listen in mrl-web"
    HTTP=1
}
HTTP=0 FETCHES=0 FETCHES_GOOD=0 FETCH_PID=''
web_server_listens() { [[ -n $(ip netns exec mrl-web ss -Hltn 'sport = :80') ]]; }

# begin_fetch: over about half a second, so that a change falls into it.
begin_fetch() {
    ((HTTP)) || return 0
    rm -f -- "$STATE/fetched"
    spawn "$STATE/log/curl.log" ip netns exec mrl-client curl -sS --max-time 20 --limit-rate 2M \
        -o "$STATE/fetched" "http://${ADDRESS[web]}/file"
    FETCH_PID=$SPAWNED_PID
}

end_fetch() {
    [[ -n $FETCH_PID ]] || return 0
    local code=0
    wait "$FETCH_PID" || code=$?
    FETCH_PID='' FETCHES=$((FETCHES + 1))
    if ((code == 0)) && cmp -s "$STATE/www/file" "$STATE/fetched"; then
        FETCHES_GOOD=$((FETCHES_GOOD + 1))
    else
        warn "fetch $FETCHES failed: $(tail -n 1 "$STATE/log/curl.log")"
    fi
}

# --- the end ------------------------------------------------------------------------------------

traffic_settled() { read_status && [[ ${S[accounting.held_pkts]-} == 0 ]]; }

# stop_manager: the account, then `millrace down`.
stop_manager() {
    await 10 traffic_settled || true
    read_status || die "the manager no longer answers"
    local dropped balanced=0
    count accounting.dropped_pkts
    dropped=$COUNT
    count accounting.rx_pkts
    [[ ${S[accounting.balanced]-} != true ]] || balanced=1
    check "the manager's own account" "$COUNT packets came in, $dropped dropped" \
        "dropped == 0 && balanced"
    if ((HTTP)); then
        check "HTTP by curl meanwhile" "$FETCHES_GOOD of $FETCHES fetches complete and right" \
            "FETCHES_GOOD == FETCHES"
    fi
    local code=0 nfs runs=0
    millrace down >"$STATE/log/down.log" 2>&1 || code=$?
    nfs=$(pgrep -c -f "^$NF_BINARY " || true)
    if alive "$MANAGER_PID"; then runs=1; fi
    check "millrace down" "exit code $code, left: $runs manager, $nfs NFs" \
        "code == 0 && nfs == 0 && runs == 0"
}
