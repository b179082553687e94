#!/bin/sh
# Runs `python ARGUMENTS` with the first interpreter that can do the job: $PYTHON when set, else the one of .venv, else the
# newest python3 on PATH that is 3.11 or later. Each candidate is started, not just found: a version switcher's shim may be
# on PATH for a version that is not there.
set -eu

works() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

makes_environments() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

root=$(dirname -- "$0")/../..
if [ -n "${PYTHON:-}" ]; then
    if ! works "$PYTHON"; then
        echo "windlass needs Python 3.11 or later, and PYTHON=$PYTHON is not that; name another or leave PYTHON unset." >&2
        exit 1
    fi
    candidates=$PYTHON
else
    if works "$root/.venv/bin/python" && grep -q '^ready' "$root/.venv/.made-by-windlass" 2>/dev/null; then
        exec "$root/.venv/bin/python" "$@"
    fi
    candidates="python3.13 python3.12 python3.11 python3"
fi

incapable=""
for candidate in $candidates; do
    works "$candidate" || continue
    if makes_environments "$candidate"; then
        exec "$candidate" "$@"
    fi
    [ -n "$incapable" ] || incapable=$candidate
done

if [ -z "$incapable" ]; then
    found=$(python3 --version 2>/dev/null || echo "no python3")
    echo "windlass needs Python 3.11 or later: looked for $candidates on PATH and found $found; install one, or name one with PYTHON=/path/to/python3." >&2
    exit 1
fi
version=$("$incapable" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
echo "Python $version here cannot make environments: install the Debian package python$version-venv (as root: apt-get install python$version-venv) and run this again." >&2
exit 1
