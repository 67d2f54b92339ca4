#!/usr/bin/env bash
# DVC 3.67.1: `dvc artifacts get` does not find an artifact of dvc.yaml unless git has an annotated tag NAME@vX.Y.Z.
#
# dvc.yaml declares the artifact `student` with its path, the output is in the remote, and everything is committed. One expects
# `dvc artifacts get REPOSITORY student` to fetch it from the current commit, as `dvc get REPOSITORY PATH` does, or to ask for a tag.
# Seen: "Unable to find artifact 'student'", also with the tag `git tag student@v1.0.0`, which is lightweight. With
# `git tag --annotate student@v1.0.0 -m first` on the same commit, the same command fetches it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export DVC_NO_ANALYTICS=true DO_NOT_TRACK=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@localhost
dvc() { "$work/env/bin/python" -m dvc "$@"; }
mkdir project store; cd project
git init -q; dvc init -q; dvc remote add -q --default store ../store
printf 'stages:\n  make:\n    cmd: echo weights > model.txt\n    outs: [model.txt]\n' > dvc.yaml
printf 'artifacts:\n  student:\n    path: model.txt\n    type: model\n' >> dvc.yaml
dvc repro --quiet; dvc push --quiet; git add .; git commit -q -m first
fetched() { cd "$work"; rm -f got.txt; dvc artifacts get "$work/project" student -o got.txt > out.txt 2>&1 && cat got.txt || grep -o "Unable to find artifact 'student'" out.txt | tail -1; }
untagged=$(fetched)
git -C "$work/project" tag student@v1.0.0; lightweight=$(fetched)
git -C "$work/project" tag -d student@v1.0.0 > /dev/null
git -C "$work/project" tag --annotate student@v1.0.0 -m first; annotated=$(fetched)
echo "no tag:          $untagged"; echo "lightweight tag: $lightweight"; echo "annotated tag:   $annotated"
[ "$untagged" = "Unable to find artifact 'student'" ] && [ "$lightweight" = "$untagged" ] && [ "$annotated" = weights ]
