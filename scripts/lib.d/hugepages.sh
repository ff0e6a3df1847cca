# shellcheck shell=bash
# Hugepages for a script's own time; `restore_hugepages` of owned.sh gives them back.

# reserve_hugepages NEEDED: makes sure so many are free; the old number comes back at the end.
reserve_hugepages() {
    ((EUID == 0)) || return 0
    local needed=$1 free reserved total target
    free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
    reserved=$(awk '/^HugePages_Rsvd/ { print $2 }' /proc/meminfo)
    free=$((${free:-0} - ${reserved:-0}))
    if [[ ! -w /proc/sys/vm/nr_hugepages ]]; then
        note "hugepages cannot be reserved here: ordinary pages will do"
        return 0
    fi
    if ((free >= needed)); then
        note "$free hugepages are free; $needed are needed"
        return 0
    fi
    total=$(</proc/sys/vm/nr_hugepages)
    target=$((total + needed - free))
    printf '%s %s\n' "$total" "$target" >"$STATE/owned/hugepages"
    echo "$target" >/proc/sys/vm/nr_hugepages
    total=$(</proc/sys/vm/nr_hugepages)
    if ((total < target)); then
        note "reserved $total of $target hugepages (memory is fragmented); ordinary pages do the rest"
    else
        note "reserved hugepages: vm.nr_hugepages = $target until the end"
    fi
}
