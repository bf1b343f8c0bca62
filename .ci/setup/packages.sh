#!/usr/bin/env bash
# Install Debian or Ubuntu packages that are not installed yet.
#   .ci/setup/packages.sh mosquitto qemu-user
set -euo pipefail

missing=()
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: install what your system calls: ${missing[*]}" >&2
    exit 1
elif [ "$(id -u)" -eq 0 ]; then
    as_root=(env)
elif sudo -n true 2>/dev/null; then
    as_root=(sudo env)
else
    echo "setup: run this, then again what you ran: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "setup: installing ${missing[*]}"
# A package list from long ago may name versions that are gone, so it is renewed once if need be.
install=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}")
"${install[@]}" >/dev/null 2>&1 || {
    "${as_root[@]}" apt-get update --quiet --quiet
    "${install[@]}" >/dev/null
}
