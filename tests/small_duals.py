"""Small dual encoders with random weights, saved in the very layout that the hub and its cache have."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

LETTERS = string.ascii_lowercase
SIDE = 32
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP_PICTURES = {
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor",
}
SIGLIP_PICTURES = {
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
}
QWEN_PICTURES = {
    "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
"""As in Qwen3-VL's repositories, whose own limit lets a picture of 12 megapixels be 11,763 tokens."""
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP of 8 dimensions over pictures of 32 px, with what BGE-VL's repository has beside its weights."""
    folder.mkdir(parents=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPConfig(
        text_config={**SIZES, "vocab_size": len(words), "bos_token_id": 52, "eos_token_id": 53},
        vision_config={**SIZES, "image_size": SIDE, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(seed)
    CLIPModel(config).half().save_pretrained(folder)
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP_PICTURES))
    said = json.loads((folder / "config.json").read_text())
    said |= {"architectures": ["MMRet_CLIP"], "auto_map": {"AutoModel": "modeling_MMRet_CLIP.MMRet_CLIP"}}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "modeling_MMRet_CLIP.py").write_text("raise SystemExit('code of a repository was run')\n")
    return folder


def save_siglip(folder: Path) -> Path:
    """Write a SigLIP of 16 dimensions over pictures of 32 px, whose tokenizer knows three words."""
    folder.mkdir(parents=True)
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "red": 2, "blue": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    config = SiglipConfig(
        text_config={**SIZES, "vocab_size": 4, "max_position_embeddings": 6, "projection_size": 16},
        vision_config={**SIZES, "image_size": SIDE, "patch_size": 16},
    )
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGLIP_PICTURES))
    return folder


def save_qwen(folder: Path) -> Path:
    """Write a Qwen3-VL of 16 dimensions, under the names that the published weights have."""
    folder.mkdir(parents=True)
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|endoftext|>"]
    others = ["<unk>", "system", "user", "assistant", "NULL", "red", "blue", "a", "b", ".", ":"]
    words = Tokenizer(WordLevel({word: index for index, word in enumerate([*marks, *others])}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|endoftext|>", unk_token="<unk>", additional_special_tokens=marks[:-1]
    )
    tokenizer.chat_template = QWEN_CHAT
    tokenizer.save_pretrained(folder)
    text = {
        **SIZES, "vocab_size": len(marks) + len(others), "num_hidden_layers": 2,
        "num_key_value_heads": 1, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0},
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 16, "out_hidden_size": 16,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=4, vision_start_token_id=2, vision_end_token_id=3
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN_PICTURES))
    return folder


def into_cache(folder: Path, cache: Path, hub_id: str, revision: str) -> Path:
    """Return the snapshot in a hub's cache that holds a folder's files: links to blobs by their hash, as hub's is."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    for file in (one for one in folder.rglob("*") if one.is_file()):
        content, link = file.read_bytes(), snapshot / file.relative_to(folder)
        is_large = file.suffix in {".safetensors", ".bin", ".pt"}
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        blob = blobs / (hashlib.sha256(content) if is_large else git).hexdigest()
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * len(link.relative_to(repository).parent.parts)) / "blobs" / blob.name)
    return snapshot
