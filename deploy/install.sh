#!/bin/sh
# Installs vswitchd on a Debian machine, or brings a newer one: as root, `install.sh WHEEL`, with a
# wheel that `maturin build --release` makes. Nothing is started; what runs goes on as it is until
# `systemctl reload vswitchd-sp@NAME` (hosts see nothing of it) and `systemctl restart` of the
# others.
set -eu

here=$(dirname "$(readlink -f "$0")")
root=${DESTDIR:-}
wheel=${1:?"usage: install.sh WHEEL"}
[ -f "$wheel" ] || { echo "install.sh: $wheel is no file" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "install.sh: run it as root" >&2; exit 1; }

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install.sh: Python 3.11 or later is needed" >&2
    exit 1
}

[ -x "$root/opt/vswitchd/bin/python" ] || python3 -m venv "$root/opt/vswitchd"
"$root/opt/vswitchd/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "$wheel"
mkdir -p "$root/usr/bin"
for program in vswitchd vswitchctl; do
    ln -sf "/opt/vswitchd/bin/$program" "$root/usr/bin/$program"
done

units=$here/../systemd
for unit in "$units"/*.service "$units"/*.socket; do
    install -D -m 644 "$unit" "$root/usr/lib/systemd/system/$(basename "$unit")"
done
install -D -m 644 "$units/vswitchd.sysusers" "$root/usr/lib/sysusers.d/vswitchd.conf"
install -D -m 644 "$units/vswitchd.tmpfiles" "$root/usr/lib/tmpfiles.d/vswitchd.conf"
[ -e "$root/etc/vswitchd/vswitchd.toml" ] ||
    install -D -m 644 "$here/one-machine/vswitchd.toml" "$root/etc/vswitchd/vswitchd.toml"
# Within an image nothing runs yet: the first boot does this by itself.
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemd-sysusers vswitchd.conf
    systemd-tmpfiles --create vswitchd.conf
    systemctl daemon-reload
fi
echo "vswitchd $("$root/opt/vswitchd/bin/vswitchctl" --version | cut -d' ' -f2) is installed."
echo "Look at /etc/vswitchd/vswitchd.toml; its first lines say how to begin."
