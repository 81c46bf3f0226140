#!/bin/bash
# Installs the Debian packages that the tests need. Unless it is run as root, it
# prints the command that installs them and fails. Each flag adds packages:
# --qemu for DMSNAP_KERNEL=qemu and qemu-arm64 and for programs of arm64, --kernels to fetch or build the other kernels
# of hack/testkernel, --e2e for the tests on a real Kubernetes.
set -euo pipefail

packages=(
	user-mode-linux      # the test kernel
	busybox-static lvm2 dmsetup thin-provisioning-tools udev
	fio                  # writers at full speed
	e2fsprogs xfsprogs btrfs-progs
	gcc libc6-dev        # the race detector
)
for arg; do
	case $arg in
	--qemu) packages+=(qemu-system-x86 qemu-system-arm qemu-user-static) ;;
	--kernels) packages+=(patchelf flex bison bc make binutils xz-utils) ;;
	--e2e) packages+=(runc containernetworking-plugins) ;;
	*)
		echo "usage: hack/deps.sh [--qemu] [--kernels] [--e2e]" >&2
		exit 2
		;;
	esac
done

if ! command -v go >/dev/null; then
	wanted=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")
	echo "hack/deps.sh: go is not in PATH; install Go $wanted or newer, see https://go.dev/doc/install" >&2
	exit 1
fi

missing=()
for p in "${packages[@]}"; do
	if ! command -v dpkg-query >/dev/null ||
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" != installed ]; then
		missing+=("$p")
	fi
done
[ ${#missing[@]} -eq 0 ] && exit

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "hack/deps.sh: packages are missing; on Debian, install them as root:" >&2
	echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
echo "hack/deps.sh: installing ${missing[*]}" >&2
if ! { apt-get update -qq && apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
	cat "$log" >&2
	echo "hack/deps.sh: the installation failed; apt's output is above" >&2
	exit 1
fi
