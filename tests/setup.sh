#!/usr/bin/env bash
# Brings what the tests need beyond Rust and a C compiler: Debian packages, a Python environment, two cargo tools.
# Asks before it acts: where all is present it changes nothing and takes a moment.
# Usage: tests/setup.sh VENV_DIR TOOLS_TARGET_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
tools_target=$2
# Daemons live in sbin, which is not on everybody's PATH.
PATH="$PATH:/usr/sbin:/sbin:/usr/local/sbin:${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin"

have() { command -v "$1" >/dev/null 2>&1; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

debian_packages() {
    local missing=()
    have cc || missing+=(gcc libc6-dev)
    have git || missing+=(git)
    have curl || missing+=(curl ca-certificates)
    have mosquitto || missing+=(mosquitto)
    have mosquitto_sub || missing+=(mosquitto-clients)
    have chromium || missing+=(chromium)
    # Programs see another time through its library; only the library counts.
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
    # Debian's python3 can exist without the part that makes environments.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
    [ ${#missing[@]} -eq 0 ] && return

    have apt-get || die "missing: ${missing[*]} (names of Debian packages; there is no apt-get here, install them your way)"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        { have sudo && sudo -n true 2>/dev/null; } ||
            die "missing Debian packages, and no right to install them. Run:" \
                "  sudo apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo -n)
    fi
    printf 'setup: installing %s\n' "${missing[*]}"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
    "${apt[@]}" update || printf 'setup: the package lists could not be renewed; trying with those at hand\n' >&2
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install: ${missing[*]}"
}

# The stamp names what the environment was made from; a change of either makes it anew.
python_environment() {
    local stamp wanted
    stamp="$venv/made-from"
    wanted="$(python3 -c 'import sys; print(sys.version)') $(sha256sum <tests/python/requirements.txt)"
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    printf 'setup: making the Python environment of the tests\n'
    python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt ||
        die "pip could not install tests/python/requirements.txt"
    printf '%s' "$wanted" >"$stamp"
}

rust_tools() {
    have cargo || die "missing: Rust with cargo, at least $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
    cargo fmt --version >/dev/null 2>&1 || die "missing: rustfmt (rustup component add rustfmt)"
    cargo clippy --version >/dev/null 2>&1 || die "missing: clippy (rustup component add clippy)"
    # Debug builds: quick to make, and quick enough for what they do.
    local tool
    for tool in cargo-nextest cargo-deny; do
        have "$tool" && continue
        printf 'setup: installing %s (once, a few minutes)\n' "$tool"
        cargo install --locked --debug --target-dir "$tools_target" "$tool" ||
            die "cargo could not install $tool"
    done
}

debian_packages
python_environment
rust_tools
