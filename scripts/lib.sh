# shellcheck shell=bash
# shellcheck disable=SC2034  # some variables are for one of the scripts only
# What the scripts share: messages, clean-up on every way out, children that end with us, waiting
# with a deadline, JSON. Source it after `set -euo pipefail`.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# --- messages -------------------------------------------------------------------------------

if [[ -t 1 && -z ${NO_COLOR-} && ${TERM-dumb} != dumb ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''
fi

# The text of the last `die`, for the JSON line at the end.
LAST_ERROR=''

step() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }

# die MESSAGE: one line that says what was wrong and what to do, then exit 1.
die() {
    LAST_ERROR=$*
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

# die_usage MESSAGE: a wrong command line. Exit code 2, as is usual for it.
die_usage() {
    LAST_ERROR=$*
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 2
}

# tail_of FILE [LINES]: the end of a log, indented, for error messages.
tail_of() {
    [[ -s $1 ]] || return 0
    printf '    --- last lines of %s\n' "$1" >&2
    tail -n "${2:-15}" -- "$1" | sed 's/^/    | /' >&2
}

# --- every way out ends in the clean-ups ----------------------------------------------------

EXIT_ACTIONS=()

# on_exit FUNCTION: call FUNCTION with the exit code when the script ends, the latest first; what it
# returns is the exit code from then on.
on_exit() { EXIT_ACTIONS+=("$1"); }

_run_exit_actions() {
    local code=$?
    set +e
    trap - EXIT
    # A second Ctrl-C must not stop the clean-up half-way, nor a reader of our output that left.
    trap '' INT TERM HUP PIPE
    local i
    for ((i = ${#EXIT_ACTIONS[@]} - 1; i >= 0; i--)); do
        "${EXIT_ACTIONS[i]}" "$code"
        code=$?
    done
    exit "$code"
}

# Installs the traps. PIPE too: the clean-up has to run when our output's reader goes away.
install_traps() {
    trap _run_exit_actions EXIT
    # A command that fails unforeseen ends the script (set -e): let it be named.
    set -o errtrace
    trap '[[ -n $LAST_ERROR ]] || LAST_ERROR="this failed: $BASH_COMMAND"' ERR
    trap 'INTERRUPTED=INT; exit 130' INT
    trap 'INTERRUPTED=TERM; exit 143' TERM
    trap 'INTERRUPTED=HUP; exit 129' HUP
    trap 'exit 141' PIPE
}
# The signal that ended the script, if one did.
INTERRUPTED=''

# --- children -------------------------------------------------------------------------------

# spawn LOG COMMAND…: starts COMMAND in the background with its output in LOG (`-`: where ours
# goes) and no stdin. It gets a session of its own, so that Ctrl-C reaches this script alone and
# the order of stopping is ours, and it is killed by the kernel should this script die first.
# Sets SPAWNED_PID, which is also the child's process group.
spawn() {
    local log=$1
    shift
    if [[ $log == - ]]; then
        setsid setpriv --pdeathsig KILL -- "$@" </dev/null &
    else
        setsid setpriv --pdeathsig KILL -- "$@" </dev/null >"$log" 2>&1 &
    fi
    SPAWNED_PID=$!
    CHILDREN+=("$SPAWNED_PID")
}
CHILDREN=()
SPAWNED_PID=0

# run_child LOG COMMAND…: like `spawn`, and waits. Unlike a plain command it can be interrupted at
# once. Returns the command's exit code.
run_child() {
    spawn "$@"
    local code=0
    wait "$SPAWNED_PID" || code=$?
    return "$code"
}

# alive PID: true while the process runs; a zombie does not.
alive() {
    local stat
    IFS= read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
    stat=${stat##*) }
    [[ ${stat:0:1} != [ZX] ]]
}

# session_of PID: its session id, or nothing when it is gone.
session_of() {
    local stat
    IFS= read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    # Behind the command's name, which may hold anything: state, parent, group, session.
    local -a fields
    read -ra fields <<<"${stat##*) }"
    printf '%s\n' "${fields[3]}"
}

# stop_child PID [SECONDS]: asks the child's whole group to end, then insists. Returns the
# child's exit code.
stop_child() {
    local pid=$1 seconds=${2:-5} code=0
    kill -TERM -- "-$pid" 2>/dev/null || true
    await "$seconds" not alive "$pid" || kill -KILL -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || code=$?
    return "$code"
}

not() { ! "$@"; }

# await SECONDS COMMAND…: tries COMMAND ten times a second until it succeeds; fails at the deadline.
await() {
    local deadline_us=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    until "$@"; do
        ((${EPOCHREALTIME/[.,]/} < deadline_us)) || return 1
        sleep 0.1
    done
}

# as_user USER: the words that run the command behind them as USER, with no group but nogroup, no
# way back to more privilege, and the kernel's promise to end it with its parent (changing the
# user clears that promise, so it is given again here).
as_user() {
    AS_USER=(setpriv "--reuid=$1" --regid=nogroup --clear-groups --no-new-privs
        --pdeathsig KILL --)
}

# --- Rust -----------------------------------------------------------------------------------

# find_cargo: sets CARGO to cargo's path, or to nothing, and CARGO_AS to the words that run it as
# the right user: under sudo that is the user whose clone this is, so that no file of root's
# appears in it and the toolchain is that user's.
find_cargo() {
    CARGO='' CARGO_AS=()
    local home=${HOME:-/root}
    if ((EUID == 0)) && [[ -n ${SUDO_UID-} && ${SUDO_UID-} != 0 ]] &&
        [[ $(stat -c %u -- "$REPO") == "$SUDO_UID" ]]; then
        home=$(getent passwd "$SUDO_UID" | cut -d : -f 6)
        CARGO_AS=(setpriv "--reuid=$SUDO_UID" "--regid=${SUDO_GID:-$SUDO_UID}" --init-groups
            --pdeathsig KILL -- env "HOME=$home")
        if [[ -x $home/.cargo/bin/cargo ]]; then
            CARGO=$home/.cargo/bin/cargo
        elif [[ -x /usr/bin/cargo ]]; then
            CARGO=/usr/bin/cargo
        fi
    else
        CARGO=$(command -v cargo) || CARGO=''
        if [[ -z $CARGO && -x $home/.cargo/bin/cargo ]]; then CARGO=$home/.cargo/bin/cargo; fi
    fi
    # rustc and the rest lie beside it.
    [[ -z $CARGO ]] || CARGO_PATH=${CARGO%/*}:$PATH
}
CARGO_PATH=$PATH

# run_cargo_tool TOOL ARGUMENTS…: runs a tool of the toolchain that `find_cargo` found.
run_cargo_tool() { "${CARGO_AS[@]}" env "PATH=$CARGO_PATH" "$@"; }

# target_dir: where cargo puts what it builds.
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$REPO/target}"; }

# --- JSON -----------------------------------------------------------------------------------

# json_flatten < DOCUMENT: every scalar as `path<TAB>value`, the path with dots (`ports.0.name`).
json_flatten() { awk -f "$REPO/scripts/json_flatten.awk"; }

# json_load ARRAY < DOCUMENT: the same into an associative array. Fails when it is not JSON.
json_load() {
    local -n into=$1
    local flat key value
    into=()
    flat=$(json_flatten) || return 1
    while IFS=$'\t' read -r key value; do
        if [[ -n $key ]]; then into["$key"]=$value; fi
    done <<<"$flat"
}

# json_string TEXT: TEXT as a JSON string.
json_string() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/ }
    text=${text//$'\t'/ }
    printf '"%s"' "${text//[$'\001'-$'\037']/}"
}
