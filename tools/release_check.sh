#!/usr/bin/env bash
# What must hold before a release, beside .ci/run: the wheel works without the checkout, and the lowest allowed versions work.
#
#   tools/release_check.sh [wheel] [lowest]     both without arguments
#
# Needs a package index, 15 GB of disk and half an hour on 2 cores. Everything is made in a temporary folder, removed at the end;
# KEEP=DIR uses DIR, and keeps it.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH
uv=$(PATH="$checkout/.venv/bin:$PATH" command -v uv) || {
    echo "release-check: expected uv in .venv/bin or on PATH, found none; run make setup" >&2
    exit 4
}
if [ -n "${KEEP:-}" ]; then
    mkdir -p "$KEEP"
    work=$(cd "$KEEP" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

step() { printf '\n== %s\n' "$*"; }

environment() { # environment NAME UV-PIP-INSTALL-ARGUMENT...: a fresh one in $work/NAME
    local name=$1
    shift
    "$uv" venv --quiet --clear --python "${PYTHON:-3.11}" "$work/$name"
    "$uv" pip install --quiet --python "$work/$name/bin/python" "$@"
}

check_wheel() {
    step "wheel: build"
    rm -rf "$work/dist"
    "$uv" build --quiet --wheel --out-dir "$work/dist"
    local wheels=("$work"/dist/*.whl)
    [ ${#wheels[@]} = 1 ] || { echo "release-check: expected one wheel, found ${wheels[*]}" >&2; exit 1; }

    step "wheel: install $(basename "${wheels[0]}") outside of the checkout, with the newest versions"
    environment wheel "${wheels[0]}"
    mkdir -p "$work/elsewhere"
    cd "$work/elsewhere"
    local home
    home=$("$work/wheel/bin/python" -c 'import swav; print(swav.__file__)')
    case $home in "$work"/wheel/*) ;; *) echo "release-check: expected swav of the wheel, found $home" >&2; exit 1 ;; esac

    step "wheel: recipes, published numbers, types and templates are in it"
    "$work/wheel/bin/swav" recipes >"$work/recipes.txt" # not into a pipe that grep closes early
    grep -q imagenette "$work/recipes.txt"
    "$work/wheel/bin/python" - <<'PYTHON'
from importlib.resources import files

for name in ("py.typed", "results/published.toml", "reporting/templates"):
    assert files("swav").joinpath(name).is_file() or files("swav").joinpath(name).is_dir(), name
PYTHON

    step "wheel: swav demo"
    "$work/wheel/bin/swav" demo --out "$work/demo"
    test -s "$work/demo/run/report.html"
    cd "$checkout"
}

check_lowest() {
    step "lowest: install the lowest versions that pyproject.toml allows"
    environment lowest --resolution lowest-direct --editable . --group dev
    "$uv" pip freeze --python "$work/lowest/bin/python" | grep -iE '^(torch|torchvision|timm|numpy|pillow|pydantic|typer)=='
    step "lowest: the fast tests"
    "$work/lowest/bin/python" -m pytest -p no:cacheprovider -n auto --maxprocesses 8 --dist worksteal
}

main() { # a function, so that the whole file is read before anything runs
    [ $# -gt 0 ] || set -- wheel lowest
    local check
    for check in "$@"; do
        case $check in
        wheel) check_wheel ;;
        lowest) check_lowest ;;
        *)
            echo "release-check: expected wheel or lowest, found $check" >&2
            exit 2
            ;;
        esac
    done
    printf '\n== release-check: passed in %d s\n' "$SECONDS"
}

main "$@"
exit
