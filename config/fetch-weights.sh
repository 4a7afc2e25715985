#!/bin/sh
# Download torchvision's official ResNet-50 for ImageNet, check it, and put it in its place in one step.
# Either the whole file is there afterwards, with the digest that its name promises, or nothing is.
#
# Settings, from the environment:
#   WEIGHTS      V1 (default) or V2: torchvision's IMAGENET1K_V1 or IMAGENET1K_V2
#   WEIGHTS_URL  a mirror: the folder that holds the file, or, when it ends in .pth, a file itself. The name must
#                end in -HEX.pth, where HEX (8 digits or more) begins the file's SHA-256, as torchvision's do
#   WEIGHTS_DIR  where to put it; default weights
set -eu

dir=${WEIGHTS_DIR:-weights}
url=${WEIGHTS_URL:-https://download.pytorch.org/models}
part=
child=
size=

fail() {
    echo "make weights: $*" >&2
    exit 1
}

# However the script ends, the download ends with it, and no part of a file stays.
finish() {
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null || :
        wait "$child" 2>/dev/null || :
    fi
    [ -z "$part" ] || rm -f "$part"
}

stop() {
    printf '\nmake weights: interrupted, nothing was kept\n' >&2
    exit "$1"
}

trap finish EXIT
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM

sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1"
    else
        shasum -a 256 "$1"
    fi | cut -d ' ' -f 1
}

# fetch TOOL FILE URL, silently, as the process itself, so that a signal reaches it. Python's statuses are curl's.
fetch() {
    case $1 in
    curl)
        exec curl --silent --fail --location --connect-timeout 20 --speed-limit 1000 --speed-time 30 --output "$2" "$3"
        ;;
    wget)
        exec wget --quiet --tries=1 --timeout=30 --output-document="$2" "$3"
        ;;
    python3)
        exec python3 -c '
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[2], timeout=30) as reply, open(sys.argv[1], "wb") as out:
        left = int(reply.headers.get("Content-Length") or 0)
        while block := reply.read(1 << 18):
            out.write(block)
            left -= len(block)
        sys.exit(18 if left > 0 else 0)
except urllib.error.HTTPError:
    sys.exit(22)
except urllib.error.URLError:
    sys.exit(7)
except TimeoutError:
    sys.exit(28)
except OSError:
    sys.exit(23)
' "$2" "$3"
        ;;
    esac
}

# reason TOOL STATUS: what went wrong.
reason() {
    case $1-$2 in
    *-6) echo "the host's name is not known; is there a network?" ;;
    *-7) echo "the server cannot be reached; is there a network?" ;;
    *-18) echo "the connection ended before the file did" ;;
    *-22 | wget-8) echo "the server answered that it does not have it" ;;
    *-23 | wget-3) echo "it could not be written to $dir/; is the disk full?" ;;
    *-28) echo "the server took too long" ;;
    *-35 | *-60 | wget-5) echo "no secure connection to the server" ;;
    wget-4) echo "the server cannot be reached, or the connection ended before the file did" ;;
    *) echo "$1 failed with status $2" ;;
    esac
}

progress() {
    printf '\r%d MB' $(($(wc -c <"$part") / 1000000)) >&2
}

case ${WEIGHTS:-V1} in
V1) name=resnet50-0676ba61.pth ;;
V2) name=resnet50-11ad3fa6.pth ;;
*) fail "WEIGHTS must be V1 or V2, not '$WEIGHTS'" ;;
esac
case ${url%%\?*} in
*.pth)
    name=${url%%\?*}
    name=${name##*/}
    ;;
*)
    url=${url%/}/$name
    size=" (98 MB)"
    ;;
esac

digest=${name%.pth}
digest=${digest##*-}
case $digest in
*[!0-9a-f]*) digest= ;;
esac
[ ${#digest} -ge 8 ] || fail "the name $name does not end in -HEX.pth with the first 8 or more digits of its SHA-256"

file=$dir/$name
if [ -f "$file" ]; then
    case $(sha256 "$file") in
    "$digest"*)
        echo "$file is there already, and its SHA-256 begins with $digest."
        exit 0
        ;;
    esac
    echo "$file is damaged; downloading it again."
fi

for tool in curl wget python3 none; do
    command -v "$tool" >/dev/null && break
done
[ "$tool" != none ] || fail "neither curl nor wget nor python3 is installed"

mkdir -p "$dir" || fail "cannot create $dir/"
part=$(mktemp "$dir/.$name.XXXXXX") || fail "cannot write to $dir/"
echo "Downloading $url$size"
fetch "$tool" "$part" "$url" &
child=$!
while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    progress
done
status=0
wait "$child" || status=$?
child=
progress
echo >&2
[ "$status" -eq 0 ] || fail "cannot download $url: $(reason "$tool" "$status")"

found=$(sha256 "$part")
case $found in
"$digest"*) ;;
*) fail "the file from $url is not the right one: its SHA-256 is $found and should begin with $digest" ;;
esac
chmod '=rw' "$part"
mv -f "$part" "$file"
part=
echo "$file: SHA-256 $found"
