# Prints every scalar of one JSON document as `path<TAB>value`: the scripts read JSON with it, so
# that an ordinary user needs nothing installed (jq is not part of Debian's base system, awk is).
# Exit code 1 when the document is not JSON.

{ text = text $0 "\n" }

END {
    at = 1
    value("")
    skip_space()
    if (at <= length(text)) bad()
}

function bad() { failed = 1; exit 1 }

function skip_space() {
    if (match(substr(text, at, 4096), /^[ \t\r\n]+/)) {
        at += RLENGTH
        if (RLENGTH == 4096) skip_space()
    }
}

function value(path,    c) {
    skip_space()
    c = substr(text, at, 1)
    if (c == "{") object(path)
    else if (c == "[") list(path)
    else if (c == "\"") print path "\t" string()
    else if (match(substr(text, at, 64), /^(-?[0-9][0-9.eE+-]*|true|false|null)/)) {
        print path "\t" substr(text, at, RLENGTH)
        at += RLENGTH
    } else bad()
}

function join(path, key) { return path == "" ? key : path "." key }

function object(path,    key, c) {
    at++
    skip_space()
    if (substr(text, at, 1) == "}") { at++; return }
    for (;;) {
        skip_space()
        if (substr(text, at, 1) != "\"") bad()
        key = string()
        skip_space()
        if (substr(text, at++, 1) != ":") bad()
        value(join(path, key))
        skip_space()
        c = substr(text, at++, 1)
        if (c == "}") return
        if (c != ",") bad()
    }
}

function list(path,    n, c) {
    at++
    skip_space()
    if (substr(text, at, 1) == "]") { at++; return }
    for (n = 0; ; n++) {
        value(join(path, n))
        skip_space()
        c = substr(text, at++, 1)
        if (c == "]") return
        if (c != ",") bad()
    }
}

# The string that starts at `at`, unescaped so far that it stays on one line.
function string(    out, c) {
    at++
    for (;;) {
        if (match(substr(text, at, 4096), /^[^"\\]+/)) {
            out = out substr(text, at, RLENGTH)
            at += RLENGTH
        }
        c = substr(text, at, 1)
        if (c == "") bad()
        if (c == "\"") { at++; gsub(/[\t\r\n]/, " ", out); return out }
        if (c == "\\") {
            c = substr(text, at + 1, 1)
            at += 2
            if (c == "n" || c == "t" || c == "r" || c == "b" || c == "f") out = out " "
            else if (c == "u") { out = out "\\u" substr(text, at, 4); at += 4 }
            else out = out c
        }
    }
}
