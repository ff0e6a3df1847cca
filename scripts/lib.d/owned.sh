# shellcheck shell=bash
# What a script has made on this machine, and how it is taken away again, by the run itself or by a
# later one that finds it. Each script that makes something gives itself a name in OWNER_NAME before it
# sources this; runs of different names do not know of each other.
#
# Two things make that safe after a `kill -9` at any moment:
# - Everything is written down in the state directory *before* it is made, so that nothing exists
#   unrecorded, and nothing is removed that is not recorded.
# - Every process of a run carries MILLRACE_<NAME>_RUN=<state directory>:<pid of the run> in its
#   environment, which children inherit and the kernel shows in /proc. Processes are found by this
#   mark alone, never by name, and never by a pid that may belong to another by now.

MARK=${OWNER_NAME^^}
MARK=MILLRACE_${MARK//-/_}_RUN

# choose_state_dir: sets STATE. Root's is shared with the NFs' user, so anyone may enter it.
choose_state_dir() {
    if ((EUID == 0)); then
        STATE=/run/millrace-$OWNER_NAME
    elif [[ -n ${XDG_RUNTIME_DIR-} && -d $XDG_RUNTIME_DIR && -w $XDG_RUNTIME_DIR ]]; then
        STATE=$XDG_RUNTIME_DIR/millrace-$OWNER_NAME
    else
        STATE=/tmp/millrace-$OWNER_NAME-$EUID
    fi
}

# mark_this_run ARGUMENTS…: replaces this process by itself with the mark in its environment
# (a variable that is only exported would not show in /proc for the script's own shell). SIGINT gets
# its default back on the way: a script's background job is started with it ignored, which a shell
# cannot undo, and then `kill -INT` would do nothing.
mark_this_run() {
    TOKEN=$STATE:$$
    [[ ${!MARK-} == "$TOKEN" ]] ||
        exec env --default-signal=INT "$MARK=$TOKEN" "$BASH" "$0" "$@"
}

# token_of PID: sets FOUND_TOKEN to the process's mark, or to nothing.
token_of() {
    FOUND_TOKEN=''
    local line
    while IFS= read -r -d '' line; do
        [[ $line != "$MARK=$STATE:"* ]] || FOUND_TOKEN=${line#*=}
    done 2>/dev/null <"/proc/$1/environ" || true
}

# find_marked: sets MARKED to the pids of the processes whose mark is WANTED_TOKEN, or, when that is
# empty, the mark of any run with this state directory; but never this script and what runs in its
# session, nor processes with another root directory: a container's /run is not ours.
WANTED_TOKEN=''
find_marked() {
    MARKED=()
    local files file pid own_session
    own_session=$(session_of $$)
    files=$(grep -lsF "$MARK=${WANTED_TOKEN:-$STATE:}" /proc/[0-9]*/environ 2>/dev/null) || true
    for file in $files; do
        pid=${file#/proc/}
        pid=${pid%/environ}
        token_of "$pid" 2>/dev/null
        [[ -n $FOUND_TOKEN && ${WANTED_TOKEN:-$FOUND_TOKEN} == "$FOUND_TOKEN" ]] || continue
        [[ $FOUND_TOKEN != "$TOKEN" || $(session_of "$pid") != "$own_session" ]] || continue
        [[ /proc/$pid/root -ef / ]] || continue
        MARKED+=("$pid")
    done
}
TOKEN=''

# live_owner: true when the run that wrote the state directory still runs; sets OWNER to its pid.
live_owner() {
    OWNER=''
    read -r OWNER 2>/dev/null <"$STATE/pid" || return 1
    [[ $OWNER =~ ^[0-9]+$ && $OWNER != "$$" ]] && alive "$OWNER" || return 1
    token_of "$OWNER" 2>/dev/null
    [[ $FOUND_TOKEN == "$STATE:$OWNER" ]]
}

# claim_state: makes the state directory ours. Renaming a directory that already has our pid in it
# is one step, so two runs that start together cannot both succeed.
claim_state() {
    if live_owner; then
        die "a $OWNER_NAME is running here already (pid $OWNER): end it with Ctrl-C, or run \`$0 --clean\`"
    fi
    if [[ -e $STATE || -L $STATE ]]; then
        step "an earlier run was cut short; removing what it left"
        # Its processes only: another run may be starting at this moment.
        WANTED_TOKEN=$STATE:${OWNER:-none}
        remove_everything
    fi
    WANTED_TOKEN=$TOKEN
    REMOVED=()
    local draft=$STATE.$$
    mkdir -m 0755 -- "$draft"
    printf '%s\n' $$ >"$draft/pid"
    mkdir -- "$draft/log" "$draft/owned"
    if ! mv -T -- "$draft" "$STATE" 2>/dev/null; then
        rm -rf -- "$draft"
        die "another $OWNER_NAME started at the same moment: run this again when it has ended"
    fi
    CLAIMED=1
}
CLAIMED=''

# own KIND NAME: writes down that we are about to make NAME; KIND is netns, link, directory or
# empty_directory.
own() { : >"$STATE/owned/$1=${2//\//%}"; }

# --- removal ----------------------------------------------------------------------------------

REMOVED=()
removed() {
    REMOVED+=("$1")
    [[ -n ${QUIET_REMOVAL-} ]] || note "removed $1"
}

# Asks the marked processes to end, insists after five seconds, and reports each.
remove_processes() {
    find_marked
    ((${#MARKED[@]})) || return 0
    local pid name
    local -a names=()
    for pid in "${MARKED[@]}"; do
        read -r name 2>/dev/null <"/proc/$pid/comm" || continue
        names+=("process $pid ($name)")
    done
    kill -TERM -- "${MARKED[@]}" 2>/dev/null || true
    if ! await 5 no_marked_left; then
        find_marked
        ((${#MARKED[@]} == 0)) || kill -KILL -- "${MARKED[@]}" 2>/dev/null || true
        await 5 no_marked_left || warn "these processes do not end: ${MARKED[*]}"
    fi
    for name in "${names[@]}"; do removed "$name"; done
}

no_marked_left() {
    find_marked
    ((${#MARKED[@]} == 0))
}

# remove_recorded KIND FUNCTION: calls FUNCTION with each recorded name of the kind.
remove_recorded() {
    local file name
    for file in "$STATE/owned/$1="*; do
        [[ -e $file ]] || continue
        name=${file##*/"$1"=}
        "$2" "${name//%//}"
        rm -f -- "$file"
    done
}

remove_link() {
    local shown
    shown=$(ip -details link show dev "$1" 2>/dev/null) || return 0
    if [[ $shown != *veth* ]]; then
        warn "$1 is recorded as ours but is no veth; left alone"
        return 0
    fi
    [[ $shown != *prog/xdp* ]] || removed "XDP program on $1"
    if ip link del dev "$1"; then removed "interface $1"; fi
}

remove_netns() {
    [[ -e /run/netns/$1 ]] || return 0
    if ip netns del "$1"; then removed "namespace $1"; fi
}

remove_directory() {
    # Only directories of the one shape that we make are ever removed.
    [[ $1 == /var/tmp/millrace-$OWNER_NAME.[0-9]* && -d $1 && ! -L $1 && -O $1 ]] || return 0
    rm -rf -- "$1"
    removed "directory $1"
}

# DPDK makes its run-time directories although it puts nothing there; only empty ones are removed.
remove_empty_directory() { rmdir -- "$1" 2>/dev/null || true; }

# Sets the number of reserved hugepages back, unless someone else has changed it since.
restore_hugepages() {
    local old target now
    [[ -s $STATE/owned/hugepages ]] || return 0
    read -r old target <"$STATE/owned/hugepages" || true
    now=$(</proc/sys/vm/nr_hugepages)
    if [[ ! $old$target =~ ^[0-9]+$ ]] || ((now > target)); then
        warn "vm.nr_hugepages is $now, which is not our number ($target): left as it is"
    elif ((now > old)); then
        echo "$old" >/proc/sys/vm/nr_hugepages
        removed "hugepage reservation ($now back to $old pages)"
    fi
    rm -f -- "$STATE/owned/hugepages"
}

# remove_state: the directory itself, with sockets and logs. It must be a real one and our own:
# under /tmp anyone can put something in its place.
remove_state() {
    [[ -e $STATE || -L $STATE ]] || return 0
    if [[ -L $STATE || ! -d $STATE || ! -O $STATE ]]; then
        die "$STATE is not a directory of ours: remove it by hand"
    fi
    local socket
    for socket in "$STATE"/*.sock; do
        [[ -S $socket ]] && removed "socket $socket"
    done
    rm -rf -- "$STATE"
    removed "state directory $STATE"
}

# remove_everything: all of it, in the order in which one thing lets go of the next: processes hold
# hugepages and sockets, interfaces hold XDP programs.
remove_everything() {
    remove_processes
    if [[ -d $STATE/owned && -O $STATE ]]; then
        if ((EUID == 0)); then
            remove_recorded link remove_link
            remove_recorded netns remove_netns
            remove_recorded directory remove_directory
            remove_recorded empty_directory remove_empty_directory
            restore_hugepages
        fi
    fi
    remove_state
    # What a run leaves that was killed before its directory had its name.
    local draft
    for draft in "$STATE".[0-9]*; do
        [[ ! -d $draft || -L $draft || ! -O $draft ]] || rm -rf -- "$draft"
    done
}

# clean_command: what `--clean` does. A run that still goes is asked to end first.
clean_command() {
    step "removing what earlier runs of $OWNER_NAME left"
    if live_owner; then
        note "a $OWNER_NAME is running (pid $OWNER): asking it to end"
        kill -TERM "$OWNER" 2>/dev/null || true
        await 20 not alive "$OWNER" || kill -KILL "$OWNER" 2>/dev/null || true
        removed "running $OWNER_NAME (pid $OWNER)"
    fi
    remove_everything
    if ((${#REMOVED[@]} == 0)); then note "nothing was left"; fi
    if ((EUID != 0)) && [[ -e /run/millrace-$OWNER_NAME ]]; then
        note "a run by root has left something too: \`sudo $0 --clean\` removes it"
    fi
}

# count_removed: "2 namespaces, 2 interfaces, …" from the list of removals.
count_removed() {
    local kind n text='' one
    for kind in process "XDP program" interface namespace "hugepage reservation" socket directory \
        "state directory"; do
        n=0
        for one in "${REMOVED[@]}"; do [[ $one != "$kind "* ]] || n=$((n + 1)); done
        case $n in
            0) continue ;;
            1) text+=", $n $kind" ;;
            *) text+=", $n $(sed 's/y$/ie/; s/ss$/sse/; s/$/s/' <<<"$kind")" ;;
        esac
    done
    text=${text#, }
    printf '%s' "${text:-nothing}"
}
