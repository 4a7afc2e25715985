#!/bin/sh
# Install the Debian or Ubuntu packages that a group of make's targets needs, when they are missing.
#   install-deps.sh GROUP...     build, test, lint, fuzz, weights, browser, bench
# Does nothing, and needs no rights, when everything is there. As a normal user it goes through sudo.
set -eu

missing=

# want PACKAGE COMMAND...: the package is needed when the command fails.
want() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

program() {
    want "$1" command -v "$2"
}

library() {
    want "$1" pkg-config --exists "$2"
}

installed() {
    [ "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" = "install ok installed" ]
}

package() {
    want "$1" installed "$1"
}

for group in "$@"; do
    case $group in
    build)
        want gcc command -v "${CC:-gcc}"
        program make make
        program pkg-config pkg-config
        package libc6-dev
        library libmicrohttpd-dev libmicrohttpd
        library libjpeg-dev libjpeg
        library libpng-dev libpng
        library libcjson-dev libcjson
        package libopenblas-pthread-dev # the serial build may not be called from several threads
        library nettle-dev nettle
        ;;
    test)
        library libcmocka-dev cmocka
        program curl curl
        program wget wget
        for name in python3 python3-pytest python3-requests python3-pil python3-numpy python3-torch \
            python3-torchvision; do
            package $name
        done
        ;;
    lint)
        program clang-format clang-format
        program cppcheck cppcheck
        program shellcheck shellcheck
        package python3-flake8
        ;;
    fuzz)
        program clang clang
        want CLANG_RUNTIME sh -c 'ls /usr/lib/llvm-*/lib/clang/*/lib/*/libclang_rt.fuzzer*.a'
        package python3
        ;;
    weights)
        program curl curl
        package ca-certificates
        ;;
    browser)
        program chromium chromium
        program chromium-driver chromedriver
        package python3-selenium
        package fonts-dejavu-core # without any font a page is blank
        ;;
    bench)
        package python3-torch
        package python3-torchvision
        package python3-pil
        program nodejs node
        program npm npm
        ;;
    *)
        echo "install-deps.sh: unknown group '$group'" >&2
        exit 2
        ;;
    esac
done

[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing:$missing (Debian's names). There is no apt-get here: install them with this system's packages." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null 2>&1 && sudo env apt-get --version >/dev/null; then # asks once, before two tries
    as_root="sudo env"
else
    echo "Missing:$missing. Installing them needs root or sudo; as root run: apt-get install$missing" >&2
    exit 1
fi

apt_get() {
    $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1
}

echo "Installing${missing%% CLANG_RUNTIME}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_get update || true # one unreachable source need not matter: the next line says
# The package of clang's runtime has clang's version in its name, which only the lists know.
clang=$(apt-cache depends clang 2>/dev/null | sed -n 's/.* clang-\([0-9]*\)$/\1/p' | head -n 1)
missing=$(echo "$missing" | sed "s/CLANG_RUNTIME/libclang-rt-$clang-dev/")
# shellcheck disable=SC2086 # each word of $missing is a package
if ! apt_get install --no-install-recommends $missing; then
    tail -n 20 "$log" >&2
    echo "Installing$missing failed; apt-get's last lines are above." >&2
    exit 1
fi
