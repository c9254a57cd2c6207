#!/bin/sh
# Makes sure that commands exist: need.sh COMMAND:PACKAGE ...
# What is missing is installed from Debian's packages when this user may (root, or sudo without
# a password); otherwise the one line that installs it is printed. `py/NAME` stands for a module
# of the system's Python, `nbdkit/NAME` for a plugin of nbdkit, `venv` for the parts that Debian
# splits off Python, `qemu/NAME` for a driver of qemu-img's.
set -eu

has() {
    case $1 in
        py/*) /usr/bin/python3 -c "import ${1#py/}" 2>/dev/null ;;
        nbdkit/*) nbdkit --dump-plugin "${1#nbdkit/}" >/dev/null 2>&1 ;;
        qemu/*) ls /usr/lib/*/qemu/block-"${1#qemu/}".so >/dev/null 2>&1 ;;
        venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

find_missing() {
    hash -r # a command found before may have gone since
    missing=
    for pair in "$@"; do
        has "${pair%%:*}" || missing="$missing ${pair#*:}"
    done
}

find_missing "$@"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$missing (Debian's names). Install them with this system's package manager, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=sudo
else
    echo "missing:$missing. As root, run:  apt-get install$missing" >&2
    echo "then run make again." >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# Word splitting is meant below: a list of packages, and an optional `sudo`.
# shellcheck disable=SC2086
install() { $as_root apt-get install -y -q --no-install-recommends $missing </dev/null; }
# A package may take another one's place, which was installed from elsewhere in a version that
# does not go with it (qemu-utils): what is missing then is installed as well.
for _ in 1 2; do
    echo "installing:$missing"
    install >/dev/null 2>&1 || { $as_root apt-get update -q && install; }
    find_missing "$@"
    [ -n "$missing" ] || exit 0
done
echo "still missing although installed:$missing. See what apt-get says of these." >&2
exit 1
