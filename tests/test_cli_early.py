"""What cannot work for want of a file says so before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys

from composir.cli import choices
from composir.models.catalogue import MODELS
from composir.models.named import BUILT_IN

FAILING = {
    "train --backbone tiny --data-root no/where": "no/where: no such folder",
    "train --backbone tiny --data-root Pictures": "did you mean 'pictures'?",
    "train --dataset own --data-root own --backbone tiny": "with --split 80/20, which makes both of them",
    "train --config no.toml": "no.toml: recipe file not found",
    "train --resume no/run": "no/run: no such file or folder; expected a run folder with last/training.pt",
    "train --from-feedback choices.jsonl no.index": "no.index: is not an index",
    "train": "the backbone 'pretrain' needs pretrained weights, and none were given",
    "train --weights no.pth": "no.pth: no such file or folder",
    "ablate --backbone tiny --data-root no/where": "no/where: no such folder",
    "features --backbone tiny --data-root no/where": "no/where: no such folder",
    "features --backbone pretrain --data-root pictures": "needs pretrained weights",
    "evaluate --model photos --data-root no/where": "no/where: no such folder",
    "evaluate --model models/RUN/best --data-root own --dataset own": "models/RUN/best: no such file or folder",
    "evaluate --model Photos --data-root own --dataset own": "did you mean 'photos'?",
    "evaluate --model bge-vl-bse --data-root own --dataset own": "did you mean 'bge-vl-base'?",
    "evaluate --predictions no.json --data-root own --dataset own": "no.json: no such file or folder",
    "evaluate --rankings no.safetensors": "no.safetensors: no such file or folder",
    "submit --validate no.json --data-root own": "no.json: no such file or folder",
    "submit --model no.pt --data-root own --out o": "no.pt: no such file or folder",
    "compare gate=no/run,no/other": "no/run: no such file or folder",
    "visualize --model photos --image no.png --text x --out o.png": "no.png: no such image file",
    "visualize --model no.pt --image pictures/a.png --text x --out o.png": "no.pt: no such file or folder",
    "convert no.pth --from lavis --out o": "no.pth: no such file or folder",
    "index no/where": "no/where: is not a folder",
    "index empty": "empty: holds no picture that is read (nothing is there)",
    "index pictures --model no.pt": "no.pt: no such file or folder",
    "search no.index --text red": "no.index: is not an index",
    "search pictures --text red": "pictures: is a folder of pictures, not its index",
    "search an.index --image no.png": "no.png: no such image file",
    "search an.index --image https://example.org/a.png": "is an address, and a file is wanted",
    "serve pictures": "pictures: is a folder of pictures, not its index",
    "data stats --data-root own --dataset own --model no.pt": "no.pt: no such file or folder",
    "data check --data-root no/where": "no/where: no such folder",
    "data import no.csv --images pictures --out o": "no.csv: cannot be read",
}
CODE = """
import contextlib, io, json, shlex, sys
from PIL import Image
from pathlib import Path
for folder in ("pictures", "empty", "own", "an.index"):
    Path(folder).mkdir()
Image.new("RGB", (4, 4)).save("pictures/a.png")
for name in ("own/own.json", "own/triplets.val.json"):
    Path(name).write_text("{}")
Path("an.index/index.json").write_text("{}")
Path("choices.jsonl").touch()
from composir.cli import main
from composir.cli.console import err
told = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(shlex.split(line))
        except SystemExit as stop:
            told[line] = stop.code, printed.getvalue(), "torch" in sys.modules
print(json.dumps(told))
"""


def test_a_command_that_lacks_a_file_fails_before_torch_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(FAILING))],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert list(told) == list(FAILING)
    for line, words in FAILING.items():
        code, printed, has_torch = told[line]
        assert (code, has_torch) == (2, False), line
        assert words in printed, line
        assert printed.startswith("error: ")
        assert len(printed.splitlines()) == 1, printed


def test_the_names_of_models_are_those_of_the_table():
    assert tuple(MODELS) == choices.MODELS
    assert tuple(BUILT_IN) == choices.BUILT_IN
