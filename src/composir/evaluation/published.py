"""Published results: what papers print, and by which rules. Every figure was read in the source that its row names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a figure was measured by; figures compare only where all five agree. ``NOT_STATED`` agrees with nothing."""

    dataset: str
    split: str
    gallery: str
    """As ``Split.gallery_rule``."""
    reference: str
    """``excluded`` from the ranking, or ``kept``."""
    text: str
    """As ``Split.text_rule`` where composir has the rule, else in words."""


@dataclass(frozen=True, slots=True)
class Published:
    """The figures of one method on one split."""

    method: str
    training: str
    """What it was trained on: ``its train split``, or ``zero-shot``, where that is another data set."""
    rules: Rules
    figures: Mapping[str, float]
    """In percent, by the keys of ``per_query``; one that is missing is not stated. Means are those of the stated
    parts: where a paper prints another mean, ``note`` says which."""
    source: str
    """The paper of the method."""
    figures_from: str
    """The table that the figures were read in: the paper's own, or that of a paper that quotes it."""
    rules_from: str
    """The code that the rules were read in, or ``NOT_STATED``."""
    note: str = ""

    def text(self, key: str) -> str:
        """Return a figure with as many decimals as its table has, ``-`` where it is not stated."""
        decimals = 1 if all(figure == round(figure, 1) for figure in self.figures.values()) else 2
        return f"{self.figures[key]:.{decimals}f}" if key in self.figures else "-"


CIRR_KEYS = (
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "recall_at_50",
    "recall_subset_at_1",
    "recall_subset_at_2",
    "recall_subset_at_3",
    "mean_r5_rs1",
)
FASHIONIQ_KEYS = (
    "recall_at_10",
    "recall_at_50",
    "dress.recall_at_10",
    "dress.recall_at_50",
    "shirt.recall_at_10",
    "shirt.recall_at_50",
    "toptee.recall_at_10",
    "toptee.recall_at_50",
)
CIRCO_KEYS = ("map_at_5", "map_at_10", "map_at_25", "map_at_50")
PINPOINT_KEYS = (
    "map_at_10",
    "map_without_negatives_at_10",
    "negative_rate_at_10",
    "precision_at_10",
    "recall_at_1",
    "paraphrase_range_at_10",
    "paraphrase_deviation_at_10",
)
KEYS = {"CIRR": CIRR_KEYS, "FashionIQ": FASHIONIQ_KEYS, "CIRCO": CIRCO_KEYS, "PinPoint": PINPOINT_KEYS}

TRAINED, ZERO_SHOT = "its train split", "zero-shot"

# Text rules.
AS_ANNOTATED = "as annotated"
BOTH_CAPTIONS = "both captions"
UNSTRIPPED = "both captions, not stripped"
COMMA = "both captions, comma between"
CORRECTED = "both captions, spelling corrected"
CONCEPT = "concept and caption"
PROMPT = "in a prompt"
"""``a photo of S that CAPTION`` or the like, S the pseudo-word of the picture."""
REWRITTEN = "rewritten by a language model"

_CIRR = partial(Rules, "CIRR", "test1", "original", "excluded")  # the test server takes nothing else
_FASHIONIQ = partial(Rules, "FashionIQ", "val")
_CIRCO = partial(Rules, "CIRCO", "test", "original", "kept")
_PINPOINT = partial(Rules, "PinPoint", "test", "original", "kept")

# Where figures were read.
_TME = "github.com/He-Changhao/2025-CVPR-TME, table {}"
_SPN = "github.com/BUAADreamer/SPN4CIR, pics/result.png, table {}"
_ENCODER = "github.com/Lee-zixu/ENCODER, assets/{}-results.png"
_RETRACK = "github.com/Lee-zixu/ReTrack, table 2"
_INTENT = "github.com/ZivChen-Ty/INTENT, table {}"
_QURE = "arXiv 2507.12416, table {}"
_MAGICLENS = "github.com/open-vision-language/MagicLens, table 2"
_MEGAPAIRS = "github.com/VectorSpaceLab/MegaPairs, table 1"
_WISER = "arXiv 2602.23029, table {}"
_PDV = "PDV (Tursun et al.), table 1"

Figure = float | None


def _method(name: str, source: str, rules_from: str = NOT_STATED, training: str = TRAINED) -> Callable[..., Published]:
    """Return what makes a row of the method: ``(rules, figures_from, *figures, note="")``, figures as in ``KEYS``."""

    def row(rules: Rules, figures_from: str, *figures: Figure, note: str = "") -> Published:
        by_key = zip(KEYS[rules.dataset], figures, strict=False)  # those at the end that are not stated are left out
        return Published(
            name,
            training,
            rules,
            {key: figure for key, figure in by_key if figure is not None},
            source,
            figures_from,
            NOT_STATED if rules.text == NOT_STATED else rules_from,
            note,
        )

    return row


_zero_shot = partial(_method, training=ZERO_SHOT)

clip4cir = _method("CLIP4CIR", "Baldrati et al., CVPR Workshops 2022", "github.com/ABaldrati/CLIP4Cir, src/validate.py")
clip4cir_23 = _method(
    "CLIP4CIR (2023)", "Baldrati et al., TOMM 2023, arXiv 2308.11485", "github.com/ABaldrati/CLIP4Cir, src/validate.py"
)
bi_blip4cir = _method(
    "BLIP4CIR+Bi", "Liu et al., WACV 2024, arXiv 2303.16604", "github.com/Cuberick-Orion/Bi-Blip4CIR, src/validate.py"
)
tg_cir = _method("TG-CIR", "Wen et al., ACM Multimedia 2023", "github.com/haokunwen/TG-CIR, datasets.py and test.py")
case = _method("CASE", "Levy et al., AAAI 2024, arXiv 2303.09429")
covr = _method(
    "CoVR-BLIP", "Ventura et al., AAAI 2024, arXiv 2308.14746", "github.com/lucas-ventura/CoVR, src/data and src/test"
)
covr_2 = _method("CoVR-2", "Ventura et al., TPAMI 2024", "github.com/lucas-ventura/CoVR, src/data and src/test")
encoder = _method("ENCODER", "Li et al., AAAI 2025", "github.com/Lee-zixu/ENCODER, datasets.py and train.py")
sprc = _method("SPRC", "Bai et al., ICLR 2024, arXiv 2310.05473", "github.com/chunmeifeng/SPRC, src/validate_blip.py")
tme = _method("TME", "Li et al., CVPR 2025", "github.com/He-Changhao/2025-CVPR-TME, src/precompute_evaluation.py")
qure = _method("QuRe", "Kwak et al., ICML 2025, arXiv 2507.12416", "github.com/jackwaky/QuRe, data and evaluate_qure")
intent = _method("INTENT", "Chen et al., AAAI 2026", "github.com/ZivChen-Ty/INTENT, datasets.py and test.py")
spn = _method(
    "SPRC+SPN",
    "Feng et al., ACM Multimedia 2024, arXiv 2404.11317",
    "github.com/BUAADreamer/SPN4CIR, blip24cir/validate.py",
)

pic2word = _zero_shot(
    "Pic2Word (CLIP-L)",
    "Saito et al., CVPR 2023, arXiv 2302.03084",
    "github.com/google-research/composed_image_retrieval, src/data.py and src/eval_utils.py",
)
_SEARLE_PAPER = "Baldrati et al., ICCV 2023, arXiv 2303.15247"
_SEARLE_CODE = "github.com/miccunifi/SEARLE, src/validate.py"
searle = _zero_shot("SEARLE (CLIP-B)", _SEARLE_PAPER, _SEARLE_CODE)
searle_xl = _zero_shot("SEARLE-XL (CLIP-L)", _SEARLE_PAPER, _SEARLE_CODE)
_LINCIR_PAPER, _LINCIR_CODE = "Gu et al., CVPR 2024, arXiv 2312.01998", "github.com/navervision/lincir, validate.py"
lincir = _zero_shot("LinCIR (CLIP-L)", _LINCIR_PAPER, _LINCIR_CODE)
lincir_g = _zero_shot("LinCIR (CLIP-G)", _LINCIR_PAPER, _LINCIR_CODE)
_CIREVL_PAPER = "Karthik et al., ICLR 2024, arXiv 2310.09291"
_CIREVL_CODE = "github.com/ExplainableML/Vision_by_Language, src/main.py and src/compute_results.py"
cirevl = _zero_shot("CIReVL (CLIP-L)", _CIREVL_PAPER, _CIREVL_CODE)
cirevl_g = _zero_shot("CIReVL (CLIP-G)", _CIREVL_PAPER, _CIREVL_CODE)
_MAGICLENS_PAPER = "Zhang et al., ICML 2024, arXiv 2403.19651"
_MAGICLENS_CODE = "github.com/google-deepmind/magiclens, data_utils.py"
magiclens_b = _zero_shot("MagicLens-B (CLIP)", _MAGICLENS_PAPER, _MAGICLENS_CODE)
magiclens_l = _zero_shot("MagicLens-L (CLIP)", _MAGICLENS_PAPER, _MAGICLENS_CODE)
magiclens_coca = _zero_shot("MagicLens-L (CoCa)", _MAGICLENS_PAPER, _MAGICLENS_CODE)
_BGE_PAPER = "Zhou et al., ACL 2025, arXiv 2412.14475"
_BGE_CODE = "github.com/VectorSpaceLab/MegaPairs, eval"
bge_base = _zero_shot("BGE-VL-base", _BGE_PAPER, _BGE_CODE)
bge_large = _zero_shot("BGE-VL-large", _BGE_PAPER, _BGE_CODE)
bge_mllm = _zero_shot("BGE-VL-MLLM", _BGE_PAPER, _BGE_CODE)

_annotated, _unknown = _CIRR(AS_ANNOTATED), _CIRR(NOT_STATED)
_prompt, _rewritten = _CIRR(PROMPT), _CIRR(REWRITTEN)
CIRR = (
    clip4cir(_annotated, _ENCODER.format("cirr"), 38.53, 69.98, 81.86, 95.93, 68.19, 85.64, 94.17, 69.09),
    bi_blip4cir(_annotated, _ENCODER.format("cirr"), 40.15, 73.08, 83.88, 96.27, 72.10, 88.27, 95.93, 72.59),
    clip4cir_23(_annotated, _SPN.format(3), 42.80, 75.88, 86.26, 97.64, 70.00, 87.45, 94.99, 72.94),
    encoder(_annotated, _ENCODER.format("cirr"), 46.10, 77.98, 87.16, 97.64, 76.92, 90.41, 95.95, 77.45),
    covr(
        _annotated,
        _TME.format(1),
        *(49.69, 78.60, 86.77, 94.31, 75.01, 88.12, 93.16, 76.81),
        note="the mean is printed as 80.81, which is not that of 78.60 and 75.01",
    ),
    covr_2(
        _annotated,
        _RETRACK,
        *(50.43, 81.08, 88.89, 98.05, 76.75, 90.34, 95.78, 78.92),
        note="the table prints no mean; it is that of 81.08 and 76.75",
    ),
    sprc(_annotated, _TME.format(1), 51.96, 82.12, 89.74, 97.69, 80.65, 92.31, 96.60, 81.39),
    qure(_annotated, _QURE.format(3), 52.22, 82.53, 90.31, 98.17, 78.51, 91.28, 96.48, 80.52),
    intent(_annotated, _INTENT.format(1), 53.37, 83.16, 90.73, 98.22, 80.24, 92.37, 96.89, 81.70),
    tme(_annotated, _TME.format(1), 53.42, 82.99, 90.24, 98.15, 81.04, 92.58, 96.94, 82.01),
    spn(_annotated, _SPN.format(3), 55.06, 83.83, 90.87, 98.29, 81.54, 92.65, 97.04, 82.69),
    case(_unknown, _TME.format(1), 48.00, 79.11, 87.25, 97.57, 75.88, 90.58, 96.00, 77.50),
    pic2word(_prompt, _MAGICLENS, 23.9),
    searle(_prompt, _WISER.format(1), 24.00, 53.42, 66.82, 89.78, 54.89, 76.60, 88.19),
    searle_xl(_prompt, _WISER.format(1), 24.24, 52.48, 66.29, 88.84, 53.76, 75.01, 88.19),
    lincir(_prompt, _WISER.format(1), 25.04, 53.25, 66.68, None, 57.11, 77.37, 88.89),
    lincir_g(_prompt, _WISER.format(1), 35.25, 64.72, 76.05, None, 63.35, 82.22, 91.98),
    cirevl(_rewritten, _WISER.format(1), 24.55, 52.31, 64.92, 86.34, 59.54, 79.88, 89.69),
    cirevl_g(_rewritten, _WISER.format(1), 34.65, 64.29, 75.06, 91.66, 67.95, 84.87, 93.21),
    magiclens_b(_unknown, _MAGICLENS, 27.0, None, None, None, 66.7),
    magiclens_l(_unknown, _MAGICLENS, 30.1, None, None, None, 68.1),
    magiclens_coca(_unknown, _MAGICLENS, 33.3, None, None, None, 70.9),
    bge_base(_unknown, _MEGAPAIRS, 36.1, None, None, None, 71.6),
    bge_large(_unknown, _MEGAPAIRS, 38.0, None, None, None, 73.2),
    bge_mllm(_unknown, _MEGAPAIRS, 46.7, None, None, None, 75.4),
)

_usual, _excluded = _FASHIONIQ("original", "kept", BOTH_CAPTIONS), _FASHIONIQ("original", "excluded", UNSTRIPPED)
_union = _FASHIONIQ("val-union", "excluded", CORRECTED)
_prompt, _rewritten = _FASHIONIQ("original", "kept", PROMPT), _FASHIONIQ("original", "kept", REWRITTEN)
_unstripped, _comma = _FASHIONIQ("original", "kept", UNSTRIPPED), _FASHIONIQ("original", "kept", COMMA)
FASHIONIQ = (
    clip4cir(_usual, _ENCODER.format("fashion"), 38.40, 61.74, 33.81, 59.40, 39.99, 60.45, 41.41, 65.37),
    clip4cir_23(_usual, _SPN.format(2), 42.52, 65.60, 38.18, 62.67, 44.01, 64.57, 45.39, 69.56),
    bi_blip4cir(_usual, _ENCODER.format("fashion"), 43.49, 67.31, 42.09, 67.33, 41.76, 64.28, 46.61, 70.32),
    qure(_usual, _QURE.format(2), 52.60, 73.48, 46.80, 69.81, 53.53, 72.87, 57.47, 77.77),
    sprc(
        _usual,
        _TME.format(2),
        *(54.72, 74.97, 49.18, 72.43, 55.64, 73.89, 59.35, 78.58),
        note="the mean R@10 is printed as 54.92 there and elsewhere, which is not that of 49.18, 55.64 and 59.35",
    ),
    tme(_usual, _TME.format(2), 55.15, 75.02, 49.73, 71.69, 56.43, 74.44, 59.31, 78.94),
    spn(_usual, _SPN.format(2), 56.37, 76.45, 50.57, 74.12, 57.70, 75.27, 60.84, 79.96),
    case(
        _FASHIONIQ(NOT_STATED, NOT_STATED, NOT_STATED),
        _TME.format(2),
        *(48.70, 70.61, 47.44, 69.36, 48.48, 70.23, 50.18, 72.24),
        note="the means are printed as 48.79 and 70.68, which are not those of the three categories",
    ),
    covr(_excluded, _TME.format(2), 48.53, 70.25, 44.55, 69.03, 48.43, 67.42, 52.60, 74.31),
    covr_2(
        _excluded,
        _RETRACK,
        *(49.97, 71.17, 46.53, 69.60, 51.23, 70.64, 52.14, 73.27),
        note="the table prints no means; they are those of the three categories",
    ),
    intent(
        _FASHIONIQ("original", "excluded", CORRECTED),
        _INTENT.format(2),
        *(55.31, 75.16, 50.32, 72.10, 56.32, 74.93, 59.28, 78.45),
    ),
    tg_cir(
        _FASHIONIQ("original", NOT_STATED, NOT_STATED),
        _SPN.format(2),
        *(39.81, 63.06, 35.55, 59.44, 40.24, 62.37, 43.65, 67.36),
        note="the gallery is that of SPN's own rows",
    ),
    tg_cir(_union, _TME.format(2), 51.32, 73.09, 45.22, 69.66, 52.60, 72.52, 56.14, 77.10),
    encoder(_union, _ENCODER.format("fashion"), 56.13, 77.59, 51.51, 76.95, 54.86, 74.93, 62.01, 80.88),
    pic2word(_prompt, _MAGICLENS, 24.7),
    searle(_prompt, _WISER.format(2), 22.89, 42.53, 18.54, 39.51, 24.44, 41.61, 25.70, 46.46),
    searle_xl(_prompt, _WISER.format(2), 25.56, 46.23, 20.48, 43.13, 26.89, 45.58, 29.32, 49.97),
    lincir(
        _prompt,
        _PDV,
        *(26.28, 46.48, 20.92, 42.44, 29.10, 46.81, 28.81, 50.18),
        note="the means are printed as 26.82 and 46.49, which are not those of the three categories",
    ),
    lincir_g(_prompt, _PDV, 45.11, 65.69, 38.08, 60.88, 46.76, 65.11, 50.48, 71.09),
    cirevl(
        _rewritten,
        _PDV,
        *(28.55, 48.60, 24.79, 44.76, 29.49, 47.40, 31.36, 53.65),
        note="the mean R@50 is printed as 48.57, which is not that of the three categories",
    ),
    cirevl_g(_rewritten, _PDV, 32.19, 52.36, 27.07, 49.53, 33.71, 51.42, 35.80, 56.14),
    magiclens_b(_unstripped, _MAGICLENS, 26.3),
    magiclens_l(_unstripped, _MAGICLENS, 30.7),
    magiclens_coca(_unstripped, _MAGICLENS, 38.0),
    bge_base(_comma, _MEGAPAIRS, 31.9),
    bge_large(_comma, _MEGAPAIRS, 34.6),
    bge_mllm(_comma, _MEGAPAIRS, 35.6),
)

_concept = _CIRCO(CONCEPT)
_prompt, _rewritten = _CIRCO(PROMPT), _CIRCO(REWRITTEN)
_README = "github.com/google-deepmind/magiclens, README.md"
CIRCO = (
    pic2word(Rules("CIRCO", "test", "original", NOT_STATED, NOT_STATED), _MAGICLENS, 8.7),
    searle(_prompt, _WISER.format(1), 9.35, 9.94, 11.13, 11.84),
    searle_xl(_prompt, _WISER.format(1), 11.68, 12.73, 14.33, 15.12),
    lincir(_prompt, _WISER.format(1), 12.59, 13.58, 15.00, 15.85),
    lincir_g(_prompt, _WISER.format(1), 19.71, 21.01, 23.13, 24.18),
    cirevl(_rewritten, _WISER.format(1), 18.57, 19.01, 20.89, 21.80),
    cirevl_g(_rewritten, _WISER.format(1), 26.77, 27.59, 29.96, 31.03),
    magiclens_b(_concept, _README, 23.1, 23.8, 25.8, 26.7, note="text: find CONCEPT but CAPTION"),
    magiclens_l(_concept, _README, 29.6, 30.8, 33.4, 34.4, note="text: find CONCEPT but CAPTION"),
    magiclens_coca(_concept, _MAGICLENS, 34.1, note="text: find CONCEPT but CAPTION"),
    bge_base(_concept, _MEGAPAIRS, 34.3, note="text: Find a picture that also CONCEPT, but CAPTION"),
    bge_large(_concept, _MEGAPAIRS, 39.2, note="text: Find a picture that also CONCEPT, but CAPTION"),
    bge_mllm(_concept, _MEGAPAIRS, 42.2, note="text: Find a picture that also CONCEPT, but CAPTION"),
)

_annotated, _unknown = _PINPOINT(AS_ANNOTATED), _PINPOINT(NOT_STATED)
_METRICS = "github.com/pinterest/pinpoint-dataset, metrics.csv at e4ebb38"
_FEWER = "over 7,566 of the 7,635 queries"
_PINPOINT_PAPER = "Mahadev et al., CVPR 2026, arXiv 2603.04598"
_METACLIP_PAPER = "Chuang et al., 2025, arXiv 2507.22062"
_measured = partial(
    _method, rules_from="github.com/pinterest/pinpoint-dataset, run_retrieval.py and evaluate.py", training=ZERO_SHOT
)
PINPOINT = (
    _measured("GPT-5 Text (reranked)", _PINPOINT_PAPER)(
        _unknown, _METRICS, 18.37, 18.85, 6.08, 20.26, 29.78, 18.44, 6.94, note=_FEWER
    ),
    _measured("GPT-5 Text (premerge)", _PINPOINT_PAPER)(
        _unknown, _METRICS, 17.93, 18.99, 8.88, 19.66, 28.75, 17.14, 6.59, note=_FEWER
    ),
    _measured("GPT-5 Text (postmerge)", _PINPOINT_PAPER)(
        _unknown, _METRICS, 15.76, 16.81, 9.28, 17.77, 26.35, 17.01, 6.49, note=_FEWER
    ),
    _measured("BGE-VL MLLM S1 (reranked)", _BGE_PAPER)(
        _unknown, _METRICS, 16.98, 17.36, 5.68, 17.61, 29.63, 17.93, 6.82
    ),
    _measured("BGE-VL MLLM S1", _BGE_PAPER)(_unknown, _METRICS, 13.14, 14.09, 8.65, 14.23, 23.26, 15.27, 5.85),
    _measured("BGE-VL MLLM S2", _BGE_PAPER)(_unknown, _METRICS, 12.07, 14.12, 12.15, 14.05, 19.33, 14.31, 5.52),
    _measured("BGE-VL CLIP Large", _BGE_PAPER)(_unknown, _METRICS, 11.04, 12.00, 10.11, 12.65, 18.42, 16.67, 6.46),
    _measured("MetaCLIP2 (combined)", _METACLIP_PAPER)(
        _annotated, _METRICS, 7.64, 10.27, 14.07, 10.17, 9.18, 14.50, 5.53
    ),
    _measured("MetaCLIP2 (slerp)", _METACLIP_PAPER)(_unknown, _METRICS, 7.50, 10.58, 15.31, 10.29, 7.23, 13.70, 5.26),
    _measured("MetaCLIP2 (text only)", _METACLIP_PAPER)(
        _annotated, _METRICS, 6.35, 6.77, 6.56, 7.58, 11.22, 14.12, 5.46
    ),
    _measured("MetaCLIP2 (image only)", _METACLIP_PAPER)(
        _PINPOINT("no sentence"), _METRICS, 3.31, 5.84, 21.94, 5.22, 0.92, 2.42, 1.04
    ),
)

PUBLISHED: tuple[Published, ...] = (*CIRR, *FASHIONIQ, *CIRCO, *PINPOINT)
