"""Fill a virtual environment with the versions of requirements-dev.lock and with this checkout: `make setup`.

    python3 .ci/install.py .venv

uv needs a fraction of pip's time. It comes as a wheel from pip's package index if the machine has none, and it gets
pip's configuration: indexes, constraints, proxy. If it cannot be had or fails, pip does the same work.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
LOCK = "requirements-dev.lock"
INPUTS = ("requirements.lock", LOCK, "pyproject.toml")
# The name of a setting of pip, the variable of uv, and what is between several values.
SETTINGS = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("constraint", "UV_CONSTRAINT", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("timeout", "UV_HTTP_TIMEOUT", " "),
    ("no-cache-dir", "UV_NO_CACHE", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("proxy", "ALL_PROXY", " "),
)


def main() -> None:
    """Fill the environment that the first argument names, unless it was filled from the same files."""
    start = time.monotonic()
    folder = Path(sys.argv[1])
    ready, digest = folder / ".ready", _digest()
    if ready.is_file() and ready.read_text() == digest:
        ready.touch()
        return
    python = folder / "bin" / "python"
    if not python.exists():
        _say(f"Making {folder} with Python {sys.version_info[0]}.{sys.version_info[1]}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install(python, "-r", str(HERE / LOCK), "-e", str(HERE))
    _say("Making the databases of Prefect and MLflow")
    subprocess.run([str(python), "-m", "dfkd_flows.session.prepare"], cwd=HERE, check=True)
    ready.write_text(digest)
    _say(f"{folder} is ready after {time.monotonic() - start:.0f} s")


def _digest() -> str:
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in INPUTS)).hexdigest()


def install(python: Path, *needed: str) -> None:
    """Install what the arguments of `pip install` name, with uv or else with pip."""
    pip = [str(python), "-m", "pip"]
    uv = _find_uv(pip)
    if uv:
        _say(f"Installing with uv: {' '.join(needed)}")
        environment = {**_uv_settings(pip), **os.environ}
        # Without bytecode, each first start is slow, and every start where Python may not write it.
        command = [uv, "pip", "install", "--compile-bytecode", "--python", str(python), *needed]
        if subprocess.run(command, env=environment, check=False).returncode == 0:
            return
    _say(f"Installing with pip instead, which takes minutes: {' '.join(needed)}")
    subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", *needed], check=True)


def _find_uv(pip: list[str]) -> str | None:
    """Return the machine's uv, else that of the environment, which pip fetches; None if pip cannot."""
    found = shutil.which("uv")
    if found:
        return found
    own = Path(pip[0]).with_name("uv")
    pinned = next(line for line in (HERE / LOCK).read_text().splitlines() if line.startswith("uv=="))
    if not own.exists():
        _say(f"Fetching {pinned}")
    fetched = subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", pinned], check=False)
    return str(own) if fetched.returncode == 0 else None


def _uv_settings(pip: list[str]) -> dict[str, str]:
    """Return pip's configuration as variables of uv."""
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    pairs = [line.partition("=")[::2] for line in listed.splitlines()]
    # Those of the command count before the general ones, and those of the environment before both.
    sections = ("global.", "install.", ":env:.")
    values = {
        name.removeprefix(section): str(ast.literal_eval(value)).split()
        for section in sections
        for name, value in pairs
        if name.startswith(section)
    }
    settings = {variable: between.join(values[name]) for name, variable, between in SETTINGS if values.get(name)}
    # As pip does: the best version of all indexes, not of the first index that has the package.
    return {**settings, "UV_INDEX_STRATEGY": "unsafe-best-match"}


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. Continue with: make setup")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} failed. Try again with: make setup")
