# shellcheck shell=bash
# What is changed under load, and what must be seen of it.

# Steps of the second part, from 1 instance: up to 4 and down to 2 one by one, then in leaps.
SCALED_SERVICE=b2
SCALE_STEPS=(2 3 4 3 2 1 4 2)
# What may move beyond the least that must.
TOLERANCE_PERCENT=10

SWAPS_DONE=0 LONGEST_CHANGE_US=0
MOVED_SHARES=() SAID_SHARES=() STEPS_DONE=()

# change WHAT COMMAND…: a `millrace … --json`, whose answer is then in APPLIED.
declare -A APPLIED=()
change() {
    local what=$1 answer
    shift
    answer=$(millrace --json "$@" 2>"$STATE/log/change.log") ||
        die "$what failed: $(tail -n 1 "$STATE/log/change.log")"
    json_load APPLIED <<<"$answer" || die "$what: the answer is no JSON: $answer"
    [[ ${APPLIED[took_us]-} =~ ^[0-9]+$ ]] || die "$what: the answer has no took_us: $answer"
    ((APPLIED[took_us] <= LONGEST_CHANGE_US)) || LONGEST_CHANGE_US=${APPLIED[took_us]}
}

# pause: a moment that follows from the seed, so that changes meet trains at any point of theirs.
pause() { sleep "0.$((RANDOM % 200 + 100))"; }

# --- first part: the chains change places -------------------------------------------------------

run_swap() {
    local file
    RANDOM=$((SEED % 32768))
    step "swapping the chains $SWAPS times under $RATE_PPS packets a second"
    start_traffic swap
    while ((SWAPS_DONE < SWAPS)); do
        next_phase
        begin_fetch
        pause
        file=swapped
        ((PHASE % 2)) || file=straight
        change "millrace apply $file.toml" apply "$STATE/$file.toml"
        SWAPS_DONE=$((SWAPS_DONE + 1))
        let_traffic_flow
        end_fetch
    done
    stop_traffic
    account
    check_swaps
}

# At the end of each phase every flow is on the chain of that phase, and it went there once.
check_swaps() {
    local phase http=$COURSE_A other=$COURSE_B wrong=0 restless=0
    for ((phase = 0; phase <= SWAPS; phase++)); do
        all_on WEB "$phase" "$http" && all_on OTHER "$phase" "$other" || wrong=$((wrong + 1))
        ((MOST_CHANGES <= 1)) || restless=$((restless + 1))
        local before=$http
        http=$other other=$before
    done
    check "swap: every swap is seen" "$SWAPS_DONE swaps, $wrong of them not by all flows" "wrong == 0"
    check "swap: no way back" "$restless swaps in which a flow went to and fro" "restless == 0"
}

# all_on REPORT PHASE COURSE: whether each flow took the course at the phase's end. Sets MOST_CHANGES.
all_on() {
    local -n seen=$1
    MOST_CHANGES=0
    phase_index "$1" "$2" || return 1
    whole "$1" "phases.$INDEX.flows"
    local flows=$WHOLE
    whole "$1" "phases.$INDEX.most_changes"
    MOST_CHANGES=$WHOLE
    [[ ${seen[phases.$INDEX.courses.$3]-0} == "$flows" ]] && ((flows * 2 >= FLOWS))
}

# --- second part: one service gets more instances, and fewer ------------------------------------

run_scale() {
    local to
    # Straight again, whatever number of swaps there was.
    change "millrace apply straight.toml" apply "$STATE/straight.toml"
    step "scaling service $SCALED_SERVICE from 1 to ${SCALE_STEPS[*]} instances under load"
    start_traffic scale
    for to in "${SCALE_STEPS[@]}"; do
        next_phase
        pause
        change "millrace service scale $SCALED_SERVICE $to" service scale "$SCALED_SERVICE" "$to"
        await 30 service_settled "$SCALED_SERVICE" "$to" ||
            die "service $SCALED_SERVICE does not come to $to instances"
        let_traffic_flow
        SAID_SHARES+=("${APPLIED[moved_share]:-null}")
        STEPS_DONE+=("$to")
    done
    stop_traffic
    account
    check_scaling
}

check_scaling() {
    local phase from=1 to
    for ((phase = 1; phase <= ${#SCALE_STEPS[@]}; phase++)); do
        to=${SCALE_STEPS[phase - 1]}
        check_step "$phase" "$from" "$to"
        from=$to
    done
}

# check_step PHASE FROM TO: flows of the chain that were on another instance at the phase's end than at
# the end of the phase before, as the packets tell. Of n flows, going to the n-th instance must move
# 1/n, and going from a to b instances 1 - min/max in all.
check_step() {
    local from=$2 to=$3 least=$2 most=$3 share bound used=0 key
    ((least <= most)) || least=$3 most=$2
    phase_index OTHER "$1" || die "the receiver saw nothing of phase $1"
    share=${OTHER[phases.$INDEX.moved_share]-}
    [[ $share =~ ^[01](\.[0-9]+)?$ ]] || die "the receiver could compare no flows in phase $1"
    MOVED_SHARES+=("$share")
    for key in "${!OTHER[@]}"; do
        [[ $key != "phases.$INDEX.instances.${SERVICE_ID[$SCALED_SERVICE]}."* ]] || used=$((used + 1))
    done
    whole OTHER "phases.$INDEX.most_changes"
    bound=$(((most - least) * 100 / most + TOLERANCE_PERCENT))
    local percent
    percent=$(awk -v share="$share" 'BEGIN { printf "%d", share * 100 + 0.999 }')
    check "scale: $from to $to" "$percent % of flows moved (bound $bound %), $used instances used" \
        "percent > 0 && percent <= bound && used == to && WHOLE <= most - least"
}

# --- the members of the last line ---------------------------------------------------------------

# list VALUES…: [1, 2].
list() {
    local text=''
    (($# == 0)) || printf -v text ', %s' "$@"
    printf '[%s]' "${text:2}"
}

add_members() {
    local name
    member swaps "$SWAPS_DONE"
    for name in lost reordered; do member "$name" "${TOTAL[$name]}"; done
    member moved_share "$(list "${MOVED_SHARES[@]}")"
    for name in sent received duplicated invented corrupted misdelivered mixed; do
        member "$name" "${TOTAL[$name]}"
    done
    member scale_steps "$(list "${STEPS_DONE[@]}")"
    member manager_moved_share "$(list "${SAID_SHARES[@]}")"
    member change_took_us_max "$LONGEST_CHANGE_US"
    member delay_us_max "$LONGEST_DELAY_US"
    member http_fetches "$FETCHES_GOOD"
    member rate_pps "$RATE_PPS"
    member flows "$FLOWS"
    member seed "$SEED"
}
