#!/bin/sh
# Makes .venv and installs the locked dependencies into it. Called by `make`; safe to run again.
set -eu
cd "$(dirname "$0")/.."
export UV_PROJECT_ENVIRONMENT=.venv
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH

fits='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

find_python() { # the first that is new enough and can make environments
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c "$fits" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: expected Python >= 3.11 with venv and pip, found none; install it (Debian: python3-venv), or name it: make PYTHON=/path/to/python" >&2
    return 1
}

if [ -x .venv/bin/uv ]; then
    uv=.venv/bin/uv
elif command -v uv >/dev/null 2>&1; then
    uv=uv
else
    python=$(find_python)
    echo "setup: making .venv with $("$python" --version), and uv inside it"
    .venv/bin/python -c '' 2>/dev/null || rm -rf .venv # left by another machine, or half made
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall "uv>=0.13"
    uv=.venv/bin/uv
fi
echo "setup: installing the locked dependencies (torch from PyPI: 3.2 GB to download, 6.2 GB on disk on Linux, once)"
"$uv" sync --frozen
