#!/bin/sh
# Run `make demo` and `make test` in a copy of this tree, with nothing on the PATH but Python, make and coreutils.
#
#   sh tests/fresh/fresh.sh [PYTHON] [DIRECTORY]
#
# PYTHON is an interpreter (default: python3); DIRECTORY is where the copy is made, and it stays there if it is named. So this
# shows what a machine without compiler, ffmpeg and other programs gives; pip's own settings in the environment are kept.
set -eu
programs="
sh make arch b2sum base32 base64 basename cat chgrp chmod chown cksum comm cp csplit cut date dd df dir dircolors
dirname du echo env expand expr factor false fmt fold groups head hostid id install join link ln logname ls md5sum
mkdir mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pinky pr printenv printf ptx pwd readlink
realpath rm rmdir runcon seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf
stty sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc who
whoami yes
"
source=$(cd "$(dirname "$0")/../.." && pwd)
python=$("${1:-python3}" -c 'import sys; print(sys.executable)')
place=${2:-}
if [ -z "$place" ]; then
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
fi
mkdir -p "$place/bin"
for program in $programs; do
    found=$(command -v "$program") && ln -sf "$found" "$place/bin/$program"
done
ln -sf "$python" "$place/bin/python3"
mkdir -p "$place/tree"
(cd "$source" && tar --exclude=./.venv --exclude=./build --exclude=./.git --exclude='*.so' --exclude=__pycache__ -cf - .) |
    (cd "$place/tree" && tar -xf -)
echo "== PATH holds: $(ls "$place/bin" | tr '\n' ' ')"
cd "$place/tree"
run() {
    echo "== make $1"
    env -u CC -u CXX -u CUDACXX -u PYTHONPATH -u VIRTUAL_ENV PATH="$place/bin" make --no-print-directory "$1" PYTHON=python3
}
run demo
run test
