#!/usr/bin/env bash
# Build the wheel, install it with the extras mini and web into the empty environment VENV (made by this script), and
# use it from there, away from this folder: the check of the gate, an index of the sample photographs, a search, a page.
# Usage: scripts/check_wheel.sh VENV
set -euo pipefail
venv=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build
"$work/build/bin/python" -m build --wheel --outdir "$work/dist" . >/dev/null
python3 -m venv "$venv"
wheel=$(echo "$work"/dist/composir-*.whl)
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "${wheel}[mini,web]"
"$venv/bin/python" -m pip check --disable-pip-version-check
cd "$work"
composir=$venv/bin/composir
samples=$("$venv/bin/python" -c 'from composir.samples import SAMPLES; print(SAMPLES)')
case $samples in "$venv"/*) ;; *) echo "$samples is not of the wheel" >&2; exit 1 ;; esac
"$composir" --version
"$composir" selfcheck
"$composir" index "$samples" --out photos.index
found=$("$composir" search photos.index --image "$samples/brown-bear.jpg" --text "but a red panda" --top-k 1)
echo "$found"
grep -q "red-panda.jpg" <<<"$found"
"$venv/bin/python" -c '
from pathlib import Path
from urllib.request import urlopen
from threading import Thread
from composir.web import open_server
server = open_server(Path("photos.index"), port=0)
Thread(target=server.run, daemon=True).start()
assert b"<title>" in urlopen(server.address).read()
'
