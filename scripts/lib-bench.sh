# Shared by the scripts that measure with `fieldstream bench`; to be sourced behind lib.sh.
# shellcheck shell=bash disable=SC2154

# Prints the program to measure: FIELDSTREAM_BIN, else a release build.
bench_program() {
    if [[ -n ${FIELDSTREAM_BIN:-} ]]; then
        [[ -x $FIELDSTREAM_BIN ]] || fail "FIELDSTREAM_BIN names no program: $FIELDSTREAM_BIN"
        printf '%s\n' "$FIELDSTREAM_BIN"
        return
    fi
    need cargo
    (cd "$root" && cargo build --release --locked -p fieldstream-cli >&2)
    local target=${CARGO_TARGET_DIR:-$root/target}
    case $target in /*) ;; *) target=$root/$target ;; esac
    printf '%s\n' "$target/release/fieldstream"
}

# What is measured by this sitting goes into $work; the server ends with the script.
begin_sitting() {
    # For the scripts alone: the program refuses variables of its prefix that it does not know.
    export -n FIELDSTREAM_BIN FIELDSTREAM_BENCH_LIMIT FIELDSTREAM_BENCH_PEERS
    program=$(bench_program)
    FIELDSTREAM_NATS_SERVER=$("$root/scripts/nats-server")
    export FIELDSTREAM_NATS_SERVER
    work=$(mktemp -d)
    server=
    helper=
    trap end_sitting EXIT
    # Ten thousand connections are as many files.
    ulimit -Sn "$(ulimit -Hn)"
}

end_sitting() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    [[ -z $helper ]] || kill "$helper" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}

# Starts a server on a fresh data folder, in a profile. nats-server is its child and is counted with it.
start_server() {
    rm -rf "$work/data" "$work/ready.json"
    "$program" up --data "$work/data" --listen 127.0.0.1:0 --tcp 127.0.0.1:0 --profile "$1" \
        --ready-file "$work/ready.json" >/dev/null 2>"$work/up.err" &
    server=$!
    (await_ready "$work/ready.json") || { cat "$work/up.err" >&2; exit 1; }
}

stop_server() {
    kill -TERM "$server"
    wait "$server" || true
    server=
    rm -rf "$work/data"
}

# Runs the load generator against the server; prints its lines of JSON. A run in which something is
# wrong (exit code 1) has figures all the same, and they say so.
bench() {
    local transport=$1 code=0
    shift
    "$program" bench --server "$(field "$work/ready.json" "$transport")" --ca "$(field "$work/ready.json" ca_file)" \
        --pids "$server" --json "$@" 2>"$work/bench.err" || code=$?
    ((code <= 1)) || { cat "$work/bench.err" >&2; fail "fieldstream bench ended with $code"; }
}

# What the figures were measured on.
machine() {
    local model commit
    model=$(lscpu | sed -n 's/^Model name: *//p' | head -n 1)
    commit=$("$program" version | awk '$1 == "git" { print $2 }')
    printf '%s x %s, %s GiB, %s, program %s' "$(nproc)" "${model:-unknown processor}" \
        "$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)" "$(date -u +%F)" "$commit"
}
