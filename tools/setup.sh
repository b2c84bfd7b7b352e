#!/bin/sh
# Makes .venv and installs the locked dependencies into it. Called by `make`; safe to run again.
# TORCH=cpu: PyTorch's CPU builds in place of those with CUDA, remembered in .venv/.torch; TORCH=cuda goes back.
set -eu
cd "$(dirname "$0")/.."
export UV_PROJECT_ENVIRONMENT=.venv
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH

torch=${TORCH:-$(cat .venv/.torch 2>/dev/null || echo cuda)}
case $torch in
cpu | cuda) ;;
*)
    echo "setup: expected TORCH=cpu or TORCH=cuda, found TORCH=$torch" >&2
    exit 2
    ;;
esac

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

if [ "$torch" = cuda ]; then
    echo "setup: installing the locked dependencies (torch from PyPI: 3.2 GB to download, 6.2 GB on disk on Linux, once)"
    "$uv" sync --frozen
else
    echo "setup: installing the locked dependencies, with PyTorch's CPU builds (about 1.3 GB on disk)"
    [ -x .venv/bin/python ] || "$uv" venv --quiet .venv
    again= # the build that is there would do for uv
    [ "$(cat .venv/.torch 2>/dev/null)" != cuda ] || again="--reinstall-package torch --reinstall-package torchvision"
    "$uv" export --quiet --frozen --no-hashes --no-emit-project --output-file .venv/locked.txt
    # shellcheck disable=SC2086 # several words
    "$uv" pip install --python .venv/bin/python --torch-backend cpu $again --constraint .venv/locked.txt --group dev --editable .
fi
echo "$torch" >.venv/.torch
