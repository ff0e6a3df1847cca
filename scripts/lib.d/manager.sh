# shellcheck shell=bash
# A running manager as the scripts see it: its status, by SOCKET and the binaries in BIN_DIR.

manager_ready() { "$BIN_DIR/millrace" --socket "$SOCKET" status --json >/dev/null 2>&1; }

# read_status: the manager's counters into the array S. Fails when the manager does not answer.
declare -A S=()
read_status() {
    local document
    document=$("$BIN_DIR/millrace" --socket "$SOCKET" status --json 2>/dev/null) || return 1
    json_load S <<<"$document"
}

# count KEY: sets COUNT to S's KEY when that is a whole number, else to 0. Nothing from outside is
# given to the shell's arithmetic without this: it would be evaluated.
count() {
    COUNT=${S[$1]-}
    [[ $COUNT =~ ^[0-9]{1,18}$ ]] || COUNT=0
}

# index_of LIST KEY VALUE: sets INDEX to the position in S's LIST whose KEY is VALUE.
index_of() {
    for ((INDEX = 0; ; INDEX++)); do
        [[ -n ${S[$1.$INDEX.$2]-} ]] || return 1
        [[ ${S[$1.$INDEX.$2]} != "$3" ]] || return 0
    done
}

# The NFs' user may not be allowed into the clone (under /root, say): it gets a copy of its program.
install_nf_binary() {
    NF_BINARY=$BIN_DIR/millrace-nf
    ((EUID == 0)) || return 0
    local directory=/var/tmp/millrace-$OWNER_NAME.$$
    own directory "$directory"
    mkdir -m 0755 -- "$directory"
    install -m 0755 -- "$NF_BINARY" "$directory/millrace-nf"
    NF_BINARY=$directory/millrace-nf
}
