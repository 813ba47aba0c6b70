# Shared by the scripts here; to be sourced. Everything they fetch goes to .cache/ of the source
# tree, nothing is installed into the system.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# Runs a command with its name and the time it took.
step() {
    local name=$1 begun=$SECONDS
    shift
    say "== $name"
    "$@"
    say "== $name: $((SECONDS - begun)) s"
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || fail "$tool is needed and not on PATH"
    done
}

# Downloads Debian packages (their files only) and unpacks them into a folder of .cache.
debian_packages() {
    local name=$1 work
    shift
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/$name.XXXXXX")
    if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$@") >"$work/log" 2>&1; then
        # No package lists on this machine: some of our own, beside the packages.
        mkdir -p "$work/lists/partial" "$work/archives/partial"
        local options=(-qq -o APT::Sandbox::User=root -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work" -o Debug::NoLocking=1)
        if ! (cd "$work" && apt-get "${options[@]}" update && apt-get "${options[@]}" download "$@") >>"$work/log" 2>&1; then
            say "cannot download $*: $(tail -n 1 "$work/log")"
            rm -rf "$work"
            return 1
        fi
    fi
    local package
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$work/files"
    done
    rm -rf "${cache:?}/$name"
    mv "$work/files" "$cache/$name"
    rm -rf "$work"
}

# Prints the path of a program of Debian: from PATH, else from packages that are only unpacked.
debian_tool() {
    local tool=$1 wrapper=$cache/bin/$1
    shift
    if command -v "$tool"; then
        return
    fi
    if [[ ! -x $wrapper ]]; then
        debian_packages "$tool" "$@" || return 1
        local library
        library=$(find "$cache/$tool" -name '*.so*' -printf '%h\n' | sort -u | paste -s -d :)
        mkdir -p "$cache/bin"
        cat >"$wrapper.new" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH='$library'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec '$cache/$tool/usr/bin/$tool' "\$@"
WRAPPER
        chmod +x "$wrapper.new"
        mv "$wrapper.new" "$wrapper"
    fi
    printf '%s\n' "$wrapper"
}

# Prints a python that has the packages of scripts/python-requirements.txt.
python_with_packages() {
    local requirements=$root/scripts/python-requirements.txt python=$cache/venv/bin/python stamp
    stamp=$cache/python-$(sha256sum "$requirements" | cut -c 1-16)
    need python3
    if [[ ! -e $stamp ]]; then
        rm -rf "$cache/venv" "$cache/site-packages" "$cache/python-with-packages"
        mkdir -p "$cache"
        if python3 -m venv "$cache/venv" >&2 2>/dev/null; then
            "$python" -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements" >&2
        else
            # Debian's python3 without python3-venv: a folder on the module path does as well.
            rm -rf "$cache/venv"
            python3 -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: \
                --target "$cache/site-packages" -r "$requirements" >&2
            printf '#!/bin/sh\nPYTHONPATH=%q${PYTHONPATH:+:$PYTHONPATH} exec python3 "$@"\n' "$cache/site-packages" >"$cache/python-with-packages"
            chmod +x "$cache/python-with-packages"
        fi
        : >"$stamp"
    fi
    if [[ -x $python ]]; then printf '%s\n' "$python"; else printf '%s\n' "$cache/python-with-packages"; fi
}

# One field of the JSON object in a file.
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }

# Waits until the file that `up --ready-file` writes is there.
await_ready() {
    for _ in $(seq 300); do
        [[ -s $1 ]] && return
        sleep 0.1
    done
    fail "not ready after 30 s"
}
