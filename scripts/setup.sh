# Sourced by scripts/demo and scripts/test: makes .venv with the pinned dependencies, once.
# Sets PYTHON. A stamp holds the hash of what was installed; an unchanged one costs nothing.

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
                2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer with venv and pip is needed; install python3 and python3-venv" >&2
    return 2
}

# set_up EXTRAS: EXTRAS is a list such as "test" or "test,zig", or empty.
set_up() {
    local extras=$1 base stamp key
    if ! command -v g++ >/dev/null 2>&1 && ! command -v clang++ >/dev/null 2>&1; then
        extras=${extras:+$extras,}zig # a compiler as a wheel
    fi
    PYTHON=$PWD/.venv/bin/python
    key=$(cat pyproject.toml | cksum)-$extras
    stamp=.venv/metronome-$(echo "$extras" | tr , -)
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
        return
    fi
    base=$(find_python)
    [ -x "$PYTHON" ] || "$base" -m venv .venv
    echo "installing pinned dependencies into .venv" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}" >&2
    echo "$key" >"$stamp"
}
