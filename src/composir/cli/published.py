"""Flags of the published scripts that the commands do not have, each with what to do instead.

The scripts are SPRC's (github.com/chunmeifeng/SPRC, ``src/``) and those of the fork that gated fusion comes from
(github.com/aizhao/SPRC-). All their other flags mean here what they mean there.
"""

from __future__ import annotations

FROM_CHECKPOINT = "leave it out: the checkpoint says it"
CONVERTED = "give --model the folder that `composir convert --from sprc FILE.pt --out FOLDER` makes"
COMBINER = "CLIP4Cir's Combiner is trained and kept with the model: composir train --fusion combiner"
LOOK_ALIKES = "--set subset_negatives=1 takes a look-alike a query as a negative, --set mined_ratio=R mines that share"
REGIONS = "boxes are not read; --loss-local W aligns patches with words"

_OF_EVALUATION = {
    "--blip-model-name": FROM_CHECKPOINT,
    "--backbone": FROM_CHECKPOINT,
    "--model-path": CONVERTED,
}
INSTEAD = {
    "train": {  # blip_fine_tune_2.py
        "--loss-itm": "leave it out: it weighs a matching loss, and blip2_cir_align_prompt has none",
        "--save-memory": "leave it out: the image tokens of a gallery never stay on the GPU",
        "--use-hard-negatives": LOOK_ALIKES,
        "--hard-negative-ratio": LOOK_ALIKES,
        "--hard-negative-db": "negatives are mined while training: --set subset_negatives=1 --set mined_ratio=R",
        "--hard-negative-weight": "--set contrastive_loss=hn-nce --set hard_negative_beta=B weighs close ones more",
        "--use-region-loss": REGIONS,
        "--loss-region": REGIONS,
        "--box-file": REGIONS,
    },
    "evaluate": {  # blip_validate.py, validate_blip.py, validate_blip_rerank.py
        **_OF_EVALUATION,
        "--blip-model-path": CONVERTED,
        "--transform": FROM_CHECKPOINT,
        "--target-ratio": FROM_CHECKPOINT,
        "--clip-model-name": "--model st:sentence-transformers/clip-ViT-B-32, or another sentence-transformers model",
        "--clip-model-path": "--model st:FOLDER, the fine-tuned CLIP as a sentence-transformers model",
        "--combining-function": COMBINER,
        "--combiner-path": COMBINER,
        "--projection-dim": COMBINER,
        "--hidden-dim": COMBINER,
    },
    "submit": {  # cirr_test_submission.py
        **_OF_EVALUATION,
        "--rerank": "leave it out: the files hold the first ranking; composir evaluate --rerank N measures both",
    },
}
"""What to do instead, by command and flag."""
