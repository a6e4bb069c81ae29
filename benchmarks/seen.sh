# What was expected and what was seen, as a table: for the scripts beside this one, which read it in
rows=()
failed=0
title() { printf '\n== %s\n' "$*" >&2; rows+=("$*"); }
check() {  # what, expected, seen
    local verdict=
    [ "$2" = "$3" ] || { verdict="  <- differs"; failed=1; }
    rows+=("$(printf '%-66s %-24s %s%s' "$1" "$2" "$3" "$verdict")")
    echo "${rows[-1]}" >&2
}
print_seen() {
    printf '%-66s %-24s %s\n' "" expected seen
    printf '%s\n' "${rows[@]}"
}
