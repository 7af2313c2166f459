#!/bin/sh
# What a graphics card does with BLIP-2's sizes, as one JSON on stdout, in about four minutes; progress on stderr.
#
#     scripts/on_a_gpu.sh > my-card.json
#
# Random weights and made-up data: nothing is downloaded. The row for docs/performance.md is in "row"; a part that fails
# or takes longer than PART_SECONDS (120) is null. PYTHON names the interpreter that has composir (python3), DIRECTORY
# a folder with 3 GB for the token cache, PARTS which parts to run.
set -u
python=${PYTHON:-python3}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for part in ${PARTS:-device feed train gate}; do
    case $part in
        device) set -- --no-compiled ;;
        train) set -- --batch-size 128 --repeats 3 --curve-steps 8 ;;
        gate) set -- --batch-size 128 --repeats 5 ;;
        feed) set -- --num-steps 40 ${DIRECTORY:+--directory "$DIRECTORY"} ;;
        *) set -- ;;
    esac
    echo "composir benchmark $part $*" >&2
    timeout "${PART_SECONDS:-120}" "$python" -m composir benchmark "$part" --json "$@" > "$out/$part.json" \
        || echo null > "$out/$part.json"
done
"$python" - "$out" <<'END'
import json
import pathlib
import statistics
import sys

parts = {file.stem: json.loads(file.read_text()) for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
device, feed, gate = (parts.get(name) for name in ("device", "feed", "gate"))
row = None
if device and device["machine"]["gpu"]:
    step = "step bf16 gate 128"
    row = {
        "card": device["machine"]["gpu"],
        "torch": device["machine"]["torch"],
        "step of 128, bf16, with the gate, s": statistics.median(device["seconds"].get(step, [float("nan")])),
        "an epoch of CIRR, s": device["cirr_epoch_seconds"].get(step),
        "memory of it, GB": device["peak_memory_bytes"].get(step, 0) / 1e9,
        "tower, images a second": max(device["images_per_second"].values()),
        "waits for batches": feed and feed["ratios"]["idle_share_ahead"],
        "gated over plain, fp32": gate and gate["ratios"]["gated_over_plain"],
    }
json.dump({"row": row, **parts}, sys.stdout, indent=1)
print()
END
