"""What stands around a caption where a model is asked with more: text rules of CIRR, and one of CIRCO."""

from __future__ import annotations

from collections.abc import Callable

IN_A_PROMPT = "in a prompt"


def in_a_prompt(caption: str) -> str:
    """Return the caption behind ``$``, where SEARLE and LinCIR put their pseudo-word of the reference.

    To a model that has none ``$`` is a character. From ``src/validate.py`` of miccunifi/SEARLE (Baldrati et al., ICCV
    2023, arXiv 2303.15247) and ``validate.py`` of navervision/lincir (Gu et al., CVPR 2024, arXiv 2312.01998).
    """
    return f"a photo of $ that {caption}"


def as_sentence(caption: str) -> str:
    """Return the caption as M-BEIR and MMEB have it: the first letter large, and a full stop where nothing ends it.

    From ``format_string`` of TIGER-AI-Lab/UniIR, src/data/preprocessing/utils.py.
    """
    text = caption.strip().strip('"')
    end = "" if text.endswith((".", "?", "!")) else "."
    return f"{text[0].upper()}{text[1:]}{end}" if text else ""


CIRR_PROMPTS: dict[str, Callable[[str], str]] = {
    "as annotated": str,
    IN_A_PROMPT: in_a_prompt,
    # Wei et al., ECCV 2024, arXiv 2311.17136: the first of four instructions, which is MIEB's as well
    "M-BEIR instruction": lambda caption: (
        "Retrieve a day-to-day image that aligns with the modification instructions of the provided image. "
        + as_sentence(caption)
    ),
    # Jiang et al., ICLR 2025, arXiv 2410.05160, without the token that stands for the picture
    "MMEB instruction": lambda caption: (
        f"Given an image, find a similar everyday image with the described changes: {as_sentence(caption)}"
    ),
}
"""What makes CIRR's evaluated sentence of its caption, by text rule; the first is the data set's own."""
