#!/usr/bin/env bash
# DVC 3.67.1: dvc.api and `dvc get` read a path in a repository that is named relative to the current folder, if this is in it.
#
# `dvc.api.read("a.txt", repo="/work/project")` names a file and its repository. One expects the same file from every folder, as the
# documentation calls the path relative to the root of the repository. Seen: the file from outside and from the root; from
# /work/project/sub, PathMissingError: "The path 'a.txt' does not exist in the target repository". `dvc get /work/project a.txt` there
# ends with "ERROR: unexpected error - ['a.txt']". From /work/project/other, which has an a.txt too, this one is read, without a message.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export DVC_NO_ANALYTICS=true DO_NOT_TRACK=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@localhost
dvc() { "$work/env/bin/python" -m dvc "$@"; }
mkdir -p project/sub project/other; cd project
git init -q; dvc init -q
echo root > a.txt; echo other > other/a.txt; dvc add --quiet a.txt other/a.txt; git add .; git commit -q -m first
cat > "$work/read.py" <<'PYTHON'
import sys

import dvc.api

try:
    print(dvc.api.read("a.txt", repo=sys.argv[1]).strip())
except Exception as error:
    print(type(error).__name__)
PYTHON
from_folder() { cd "$1"; "$work/env/bin/python" "$work/read.py" "$2" 2>/dev/null; }
outside=$(from_folder "$work" "$work/project"); inside=$(from_folder "$work/project/sub" "$work/project")
other=$(from_folder "$work/project/other" "$work/project")
got=$(cd "$work/project/sub"; dvc get "$work/project" a.txt -o got.txt 2>&1 | grep -o "unexpected error" || true)
echo "from outside: $outside"; echo "from project/sub: $inside"; echo "from project/other: $other"
echo "dvc get in project/sub: $got"
[ "$outside" = root ] && [ "$inside" = PathMissingError ] && [ "$other" = other ] && [ "$got" = "unexpected error" ]
