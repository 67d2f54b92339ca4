#!/usr/bin/env bash
# DVC 3.67.1: Repo.reproduce(on_error="keep-going") raises an error without the cause that on_error="fail" has.
#
# A stage's command exits with 3. With the default, the ReproductionError has the cause StageCmdFailedError, "failed to run: exit 3,
# exited with 3". One expects the same of "keep-going", which differs in what runs afterwards. Seen: the same message, "failed to
# reproduce 'one'", with __cause__ and __context__ None: a program cannot find out how the command ended, or whether it was started
# at all. Only a warning in DVC's log names the exit code.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check dvc==3.67.1 2>/dev/null
export DVC_NO_ANALYTICS=true DO_NOT_TRACK=1
mkdir project; cd project
git init -q; "$work/env/bin/python" -m dvc init -q
printf 'stages:\n  one:\n    cmd: exit 3\n    outs: [x.txt]\n' > dvc.yaml
cat > "$work/cause.py" <<'PYTHON'
import sys

from dvc.repo import Repo

try:
    Repo(".").reproduce(on_error=sys.argv[1])
except Exception as error:
    print(f"{error}, cause: {error.__cause__ or error.__context__}")
PYTHON
cause() { "$work/env/bin/python" "$work/cause.py" "$1" 2>/dev/null | grep cause; }
fail=$(cause fail); going=$(cause keep-going)
echo "fail:       $fail"; echo "keep-going: $going"
[ "$fail" = "failed to reproduce 'one', cause: failed to run: exit 3, exited with 3" ] && [ "$going" = "failed to reproduce 'one', cause: None" ]
