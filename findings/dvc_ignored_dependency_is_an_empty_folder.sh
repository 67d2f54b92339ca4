#!/usr/bin/env bash
# DVC 3.67.1: a dependency that .dvcignore matches is recorded as an empty folder, without a message.
#
# A stage names the folder `code/data` in `deps`. .dvcignore has the line `data`, meant for the data folder in the project's root;
# as in .gitignore it matches at any depth. One expects an error, a warning, or that a dependency named on purpose is
# hashed all the same. Seen: `dvc repro` records md5 d751713988987e9331980363e24189ce.dir, nfiles 0 (the digest of the
# empty list), exits with 0, and an edit of code/data/read.py is then "up to date": the stage never runs again.
# `/data` in .dvcignore, which names the root alone, records one file, and the edit is seen.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export DVC_NO_ANALYTICS=true DO_NOT_TRACK=1
dvc() { "$work/env/bin/python" -m dvc "$@"; }
try() {  # pattern -> "nfiles, state after an edit"
    rm -rf project; mkdir -p project/code/data; cd project
    git init -q; dvc init -q
    echo "$1" > .dvcignore; echo 'print(1)' > code/data/read.py
    printf 'stages:\n  read:\n    cmd: cp code/data/read.py out.txt\n    deps: [code/data]\n    outs: [out.txt]\n' > dvc.yaml
    dvc repro --quiet
    nfiles=$(grep -A4 'path: code/data' dvc.lock | grep nfiles | tr -dc 0-9)
    echo 'print(2)' > code/data/read.py
    state=$(dvc status | grep -q 'up to date' && echo 'up to date' || echo changed)
    cd ..; echo "$nfiles files, $state"
}
ignored=$(try data); anchored=$(try /data)
echo "pattern 'data':  $ignored"; echo "pattern '/data': $anchored"
[ "$ignored" = "0 files, up to date" ] && [ "$anchored" = "1 files, changed" ]
