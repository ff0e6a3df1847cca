# shellcheck shell=bash
# What a script found: kept for a table and for one line of JSON at its end.

# Findings: rows of the table, members of the JSON line, and whether all held.
ROWS=()
MEMBERS=()
FAILURES=()

# check WHAT SHOWN CONDITION: one row; CONDITION is an arithmetic expression that must be true.
check() {
    local mark="${GREEN}ok${PLAIN}"
    if ! (($3)); then
        mark="${RED}FAILED${PLAIN}"
        FAILURES+=("$1: $2")
    fi
    ROWS+=("$(printf '%-26s %-52s %s' "$1" "$2" "$mark")")
}

# member NAME VALUE: one member of the JSON line, VALUE already JSON.
member() { MEMBERS+=("$(json_string "$1"): $2"); }

# print_summary [WHAT]: the table.
print_summary() {
    ((${#ROWS[@]})) || return 0
    step "summary${1:+ ($1)}"
    local row
    for row in "${ROWS[@]}"; do note "$row"; done
}

# json_line CODE: the last line of a script, all members behind whether it is well.
json_line() {
    local ok=false error=''
    if (($1 == 0 && ${#FAILURES[@]} == 0)); then ok=true; fi
    if [[ -n $INTERRUPTED ]]; then
        error="interrupted by SIG$INTERRUPTED"
    elif ((${#FAILURES[@]})); then
        error=${FAILURES[0]}
    elif [[ $ok == false ]]; then
        error=${LAST_ERROR:-"ended with exit code $1"}
    fi
    printf '{"ok": %s' "$ok"
    local one
    for one in "${MEMBERS[@]}"; do printf ', %s' "$one"; done
    [[ -z $error ]] || printf ', "error": %s' "$(json_string "$error")"
    printf '}\n'
}
