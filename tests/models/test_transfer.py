"""`composir convert` as a person and a script meet it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

import composir
from composir.errors import ComposirError
from composir.models import backbones
from composir.models.backbones import build
from composir.models.backbones.blip2 import blip2_tokenizer
from composir.models.checkpoint import from_pretrained, save_pretrained
from composir.models.transfer import SPRC_CLASS, convert, export_sprc

from ..conftest import GOLDEN

TOLERANCE = {"atol": 1e-5, "rtol": 0}
VOCABULARY = 30_523
GOLDEN_SIZES = GOLDEN / "config.json"


@pytest.fixture
def sprc_file(golden, tmp_path):
    file = tmp_path / "tuned_blip_best.pt"
    torch.save({"epoch": 7, SPRC_CLASS: golden("weights")}, file)
    return file


def test_a_file_of_sprc_gives_the_published_numbers(run, golden, sprc_file, tmp_path):
    code, out, err = run(
        "convert", "--from", "sprc", sprc_file, "--out", tmp_path / "model", "--qformer-config", GOLDEN_SIZES, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    weights, data = golden("weights"), golden("forward")
    dropped = {one["key"]: one["reason"] for one in document["dropped"]}
    assert set(document["mapped"]) | set(dropped) == set(weights)
    assert all(dropped.values())
    assert (document["fresh"], document["tower"], document["has_tokenizer"]) == ([], "none", False)
    model = composir.load(tmp_path / "model")
    assert model.gated_fusion is None
    inputs = data["ref_embeds"], data["input_ids"], data["attention_mask"]
    torch.testing.assert_close(model.encode_query(*inputs), data["fusion_feats"], **TOLERANCE)
    torch.testing.assert_close(model.encode_target(data["target_embeds"]), data["target_feats"], **TOLERANCE)
    code, out, _ = run(
        "convert", "--from", "sprc", sprc_file, "--out", tmp_path / "b", "--qformer-config", GOLDEN_SIZES
    )
    assert code == 0
    assert "dropped 1 (positions are counted, not stored): Qformer.bert.embeddings.position_ids" in out
    assert "no vision tower in it: the model works on image tokens" in out
    assert "not BLIP-2's vocabulary: the model works on token ids" in out


def test_there_and_back_is_the_same_file(run, golden, sprc_file, tmp_path):
    convert(str(sprc_file), "sprc", tmp_path / "model", qformer_config=GOLDEN_SIZES)
    code, out, err = run("convert", "--to", "sprc", tmp_path / "model", "--out", tmp_path / "back.pt", "--json")
    assert code == 0, err
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    state, weights = back[SPRC_CLASS], golden("weights")
    unread = {key for key in weights if key.startswith("Qformer.cls.") or key.endswith("position_ids")}
    assert set(state) == set(weights) - unread
    assert all(torch.equal(state[key], weights[key]) for key in state)
    assert set(json.loads(out)["mapped"].values()) == set(state)
    convert(str(tmp_path / "back.pt"), "sprc", tmp_path / "again", qformer_config=GOLDEN_SIZES)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tower", ["vit_eva", "vit_clip"])
@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.usefixtures("small_heads")
def test_a_lavis_file_gives_a_model_on_pictures(run, whole, golden, tmp_path, *, tower, embed):
    weights = whole(tower, VOCABULARY)
    for name in weights:
        if name.startswith("visual_encoder.") and ".mlp." in name:
            weights[name] = weights[name].half()  # as SPRC saves its tower
    torch.save({"model": weights}, tmp_path / "blip2_pretrained.pth")
    flags = ["--embed-tower"] if embed else []
    code, out, err = run(
        "convert", "--from", "lavis", tmp_path / "blip2_pretrained.pth", "--out", tmp_path / "model", *flags, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["tower"] == ("embedded" if embed else "referenced")
    assert document["fresh"] == ["prompt_tokens"]
    assert document["has_tokenizer"]
    assert (tmp_path / "model" / "tower.safetensors").exists() == embed
    if embed:
        (tmp_path / "blip2_pretrained.pth").unlink()
        shutil.move(tmp_path / "model", tmp_path / "moved")
    model = from_pretrained(tmp_path / ("moved" if embed else "model"))
    assert model.tokenize(["make it red"])[0].tolist() == [[101, 2191, 2009, 2417, 102]]
    data = golden(tower)
    with torch.inference_mode():
        tokens = model.ln_vision(model.tower.network(data["__input__"]))
    torch.testing.assert_close(tokens, data["__output__"], atol=2e-3, rtol=0)  # half of it is rounded to fp16


@pytest.mark.usefixtures("small_heads")
def test_a_tower_that_is_not_where_it_was_is_named(whole, sizes_file, tmp_path):
    file = tmp_path / "blip2_pretrained.pth"
    torch.save({"model": whole()}, file)
    convert(str(file), "lavis", tmp_path / "model", qformer_config=sizes_file)
    file.unlink()
    backbones.read_backbone.cache_clear()
    with pytest.raises(ComposirError, match=r"leaves out its vision tower eva-vit.*blip2_pretrained\.pth.*embed-tower"):
        from_pretrained(tmp_path / "model")


def test_a_gate_in_the_file_is_kept_or_left_out_and_one_not_there_is_fresh(golden, tmp_path):
    gate = {f"gated_fusion.{name}": value for name, value in small_gate().items()}
    torch.save({SPRC_CLASS: {**golden("weights"), **gate}}, tmp_path / "gated.pt")
    torch.save({SPRC_CLASS: golden("weights")}, tmp_path / "plain.pt")

    def gated(name, **settings):
        done = convert(str(tmp_path / name), "sprc", tmp_path / "out", qformer_config=GOLDEN_SIZES, **settings)
        model = from_pretrained(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return done, model.gated_fusion

    done, kept = gated("gated.pt")
    assert torch.equal(kept.alpha, gate["gated_fusion.alpha"])
    done, off = gated("gated.pt", gated_fusion=False)
    assert off is None
    assert {one.key for one in done.dropped if one.reason == "the gate is off"} == set(gate)
    done, fresh = gated("plain.pt", gated_fusion=True, seed=3)
    assert set(done.fresh) == set(gate)
    assert torch.equal(fresh.gate[0].weight, gated("plain.pt", gated_fusion=True, seed=3)[1].gate[0].weight)
    assert not torch.equal(fresh.gate[0].weight, gated("plain.pt", gated_fusion=True, seed=4)[1].gate[0].weight)


def small_gate():
    from composir.models.gated_fusion import GatedFusion  # noqa: PLC0415

    torch.manual_seed(1)
    return GatedFusion(48, 64, alpha_init=0.25).state_dict()


# -- the hub's layout --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_folder(tmp_path):
    """Return a small folder in the hub's layout, and the model it was saved from."""
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        encoder_hidden_size=32, use_qformer_text_input=True,
    )  # fmt: skip
    config = Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=4, image_text_hidden_size=8)
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config).eval()
    model.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub", model


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_folder_gives_the_same_scores(run, hub_folder, tmp_path, sharded):
    folder, theirs = hub_folder
    if sharded:
        (folder / "model.safetensors").unlink()
        save_torch_state_dict(theirs.state_dict(), folder, max_shard_size=2_000_000)
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    code, out, err = run("convert", "--from", "hf", folder, "--out", tmp_path / "model", "--embed-tower", "--json")
    assert code == 0, err
    assert json.loads(out)["fresh"] == ["prompt_tokens", "temperature"]
    ours = from_pretrained(tmp_path / "model")
    pixels, (ids, mask) = torch.randn(2, 3, 28, 28), ours.tokenize(["make it red", "a dog"])
    with torch.inference_mode():
        tokens = ours.tower.network(pixels)
        matched = theirs(pixels, ids, mask, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(ours.itm_head(ours.fuse(tokens, ids, mask)).mean(dim=1), matched, **TOLERANCE)
        contrast = theirs(pixels, ids, mask, use_image_text_matching_head=False)
        torch.testing.assert_close(ours.encode_target(tokens), contrast.image_embeds, **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: {}, r"model\.safetensors\.index\.json: has no weight_map"),
        (
            lambda index: {"weight_map": {**index["weight_map"], "left.over": min(index["weight_map"].values())}},
            r"left\.over not in the file that the index names",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_one_clear_error(hub_folder, tmp_path, change, words):
    folder, theirs = hub_folder
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(theirs.state_dict(), folder, max_shard_size=2_000_000)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    with pytest.raises(ComposirError, match=words):
        convert(str(folder), "hf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_shards_that_are_missing_are_named(hub_folder, tmp_path):
    folder, theirs = hub_folder
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(theirs.state_dict(), folder, max_shard_size=2_000_000)
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ComposirError, match=rf"of which {gone.name} are missing; fix: download the missing parts"):
        convert(str(folder), "hf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_of_other_words_is_refused(hub_folder, tmp_path):
    folder, _ = hub_folder
    blip2_tokenizer().save(folder / "tokenizer.json")
    convert(str(folder), "hf", tmp_path / "fits")
    build("tiny").tokenizer.save(folder / "tokenizer.json")
    with pytest.raises(ComposirError, match=r"tokenizer\.json: does not match: 30,\d+ of 30,522 words have another id"):
        convert(str(folder), "hf", tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ComposirError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        convert(str(folder), "hf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "blip"}'), "config of a 'blip' model"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: is not JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "blip-2", "vision_config": 7}'),
            r"config\.json: is not a config that transformers reads",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: is missing"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"pytorch_model\.bin: holds pickled weights; expected model\.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_hub_model_is_one_clear_error(hub_folder, tmp_path, change, words):
    change(hub_folder[0])
    with pytest.raises(ComposirError, match=words):
        convert(str(hub_folder[0]), "hf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_hub_id_without_network_is_one_clear_error(run, tmp_path):
    code, _, err = run("convert", "--from", "hf", "Salesforce/blip2-itm-vit-g", "--out", tmp_path / "model")
    assert code == 2
    assert err.startswith("error: Salesforce/blip2-itm-vit-g: is neither here nor in the hub's cache, and the hub")
    assert len(err.strip().splitlines()) == 1


# -- bad input ---------------------------------------------------------------------------------------------------------


class Planted:
    """A pickle that would run code when it is loaded without care."""

    def __reduce__(self):
        return (open, ("planted", "w"))


def cut(file, weights):
    torch.save({"model": weights}, file)
    file.write_bytes(file.read_bytes()[:-5000])


def wrong_keys(file, weights):
    weights["Qformer.bert.encoder.layer.1.output.dens.weight"] = weights.pop(
        "Qformer.bert.encoder.layer.1.output.dense.weight"
    )
    weights.pop("text_proj.bias")
    weights["llm_proj.weight"] = torch.zeros(2)
    torch.save({"model": weights}, file)


def narrow_tokens(file, weights):
    for key in weights:
        if ".crossattention.self.key.weight" in key or ".crossattention.self.value.weight" in key:
            weights[key] = weights[key][:, :48]
    torch.save({"model": weights}, file)


def without_patches(file, weights):
    del weights["visual_encoder.patch_embed.proj.weight"]
    torch.save({"model": weights}, file)


def wrong_shape(file, weights):
    weights["text_proj.weight"] = weights["text_proj.weight"][:, :-1]
    torch.save({"model": weights}, file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, ["cannot be read as a file of weights", "it may be cut off: download or copy it again"]),
        (lambda file, _: file.write_bytes(b"<html>quota exceeded</html>"), ["cannot be read as a file of weights"]),
        (lambda file, _: file.write_bytes(b""), ["cannot be read as a file of weights"]),
        (
            lambda file, _: torch.save({"model": Planted()}, file),
            ["holds more than weights, and was not loaded: unpickling it could run code", "io.open"],
        ),
        (lambda file, _: torch.save([1, 2], file), ["holds no weights where they are expected, but list"]),
        (
            lambda file, _: torch.save({"optimizer": {}, "epoch": 3}, file),
            ["holds no weights where they are expected, but the keys optimizer, epoch", "under 'model'"],
        ),
        (
            lambda file, _: torch.save({"model": {"layer.weight": torch.zeros(2)}}, file),
            ["holds no Q-Former: its keys are layer.weight", "fix: check that it is the right file"],
        ),
        (
            wrong_keys,
            [
                "missing Qformer.bert.encoder.layer.1.output.dense.weight "
                "(nearest: Qformer.bert.encoder.layer.1.output.dens.weight)",
                "missing text_proj.bias",
                "unexpected Qformer.bert.encoder.layer.1.output.dens.weight "
                "(nearest: Qformer.bert.encoder.layer.1.output.dense.weight)",
                "unexpected llm_proj.weight",
            ],
        ),
        (
            lambda file, weights: torch.save({"model": {**weights, "query_tokens": torch.zeros(1, 0, 64)}}, file),
            ["has sizes that make no model (num_query_tokens = 0: expected a whole number, above 0)"],
        ),
        (narrow_tokens, ["the tower is 64 wide, and the Q-Former reads tokens 48 wide"]),
        (without_patches, ["missing visual_encoder.patch_embed.proj.weight"]),
        (wrong_shape, ["text_proj.weight is (24, 63) instead of (24, 64)"]),
        (
            lambda file, weights: torch.save({SPRC_CLASS: weights}, file),
            ["is a .pt file that SPRC's training saved, not a BLIP-2 stage-1", "fix: composir convert --from sprc"],
        ),
    ],
)
@pytest.mark.usefixtures("small_heads")
def test_a_file_that_is_no_such_checkpoint_is_one_line_and_nothing_is_written(run, whole, here, *, spoil, words):
    file = here / "blip2_pretrained.pth"
    spoil(file, whole())
    code, out, err = run("convert", "--from", "lavis", file, "--out", here / "model")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in ["blip2_pretrained.pth", *words]), err
    assert [path.name for path in here.iterdir()] == ["blip2_pretrained.pth"]


@pytest.mark.usefixtures("small_heads")
def test_every_missing_weight_of_a_tower_is_named(whole, tmp_path):
    weights = whole()
    del weights["visual_encoder.blocks.1.mlp.fc2.bias"], weights["visual_encoder.blocks.2.norm1.weight"]
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(ComposirError) as error:
        convert(str(tmp_path / "a.pth"), "lavis", tmp_path / "model")
    assert "missing visual_encoder.blocks.1.mlp.fc2.bias" in str(error.value)
    assert "missing visual_encoder.blocks.2.norm1.weight" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 768, "num_hidden_layers": 12}, "of another size: hidden_size is 768 in the config and 64 in"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; expected a whole number that divides the hidden size"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"heads": 4}, "has none of the fields that are read: vocab_size, hidden_size"),
        ({"vocab_size": 400}, "weights do not show its number of heads; expected a width of 768"),
    ],
)
def test_sizes_that_do_not_fit_are_one_clear_error(sprc_file, tmp_path, fields, words):
    (tmp_path / "sizes.json").write_text(json.dumps(fields))
    with pytest.raises(ComposirError, match=words):
        convert(str(sprc_file), "sprc", tmp_path / "model", qformer_config=tmp_path / "sizes.json")
    assert not (tmp_path / "model").exists()


def test_a_file_of_sizes_that_is_none_is_one_clear_error(sprc_file, tmp_path):
    sizes = tmp_path / "sizes.json"
    with pytest.raises(ComposirError, match=r"sizes\.json: no such file; fix: check the path"):
        convert(str(sprc_file), "sprc", tmp_path / "model", qformer_config=sizes)
    sizes.write_text("[4]")
    with pytest.raises(ComposirError, match=r"sizes\.json: is not a JSON object"):
        convert(str(sprc_file), "sprc", tmp_path / "model", qformer_config=sizes)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.pth", "--out", "m"], "nothing to do was given; expected exactly one of --from, --to"),
        (
            ["there", "--out", "m", "--from", "lavi"],
            "--from 'lavi' is not known; expected lavis or sprc or hf or composir; fix: did",
        ),
        (["there", "--out", "m", "--to", "lavis"], "--to 'lavis' is not known; expected sprc"),
        (["x.pth", "--out", "m", "--from", "lavis"], "x.pth: no such file or folder"),
        (
            ["there", "--out", "there", "--from", "lavis"],
            "there: already exists; fix: give another --out, or delete it",
        ),
        (["there", "--out", "m", "--to", "sprc"], "there: holds no config.json"),
    ],
)
def test_mistakes_in_the_flags(run, here, arguments, message):
    (here / "there").mkdir()
    code, out, err = run("convert", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_with_parts_that_sprc_has_not_stays_here(tmp_path):
    save_pretrained(build("tiny", num_adapted_tokens=9), tmp_path / "model")
    with pytest.raises(ComposirError, match=r"no place for: .*adapter\.projection\.weight"):
        export_sprc(str(tmp_path / "model"), tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


# -- memory ------------------------------------------------------------------------------------------------------------


def anonymous_memory() -> int:
    """Bytes of this process that are no cached part of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converting_needs_a_fraction_of_the_file_in_memory(golden, tmp_path, suffix):
    weights, num_layers = golden("weights"), 24
    wide = {key: value for key, value in weights.items() if ".layer." not in key}
    for layer in range(num_layers):  # feed-forwards of 2 MB, four a layer that has two: no larger tensor
        for key, value in weights.items():
            if f".layer.{2 if layer % 2 == 0 else 1}." not in key:
                continue
            shape = tuple(8192 if size == 128 else size for size in value.shape)
            wide[key.replace(f".layer.{2 if layer % 2 == 0 else 1}.", f".layer.{layer}.")] = torch.zeros(shape)
    sizes = tmp_path / "sizes.json"
    sizes.write_text('{"num_attention_heads": 4}')
    file = tmp_path / f"wide{suffix}"
    if suffix == ".pth":
        torch.save({"model": wide}, file)
    else:
        save_file(wide, file)
    del wide
    size = file.stat().st_size
    assert size > 150e6
    done, peak = threading.Event(), [0]

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_memory())

    save_file(weights, tmp_path / "small.safetensors")
    convert(str(tmp_path / "small.safetensors"), "lavis", tmp_path / "warm", qformer_config=sizes)  # loads modules
    before, watcher = anonymous_memory(), threading.Thread(target=watch)
    watcher.start()
    convert(str(file), "lavis", tmp_path / "model", qformer_config=sizes)
    done.set()
    watcher.join()
    assert (peak[0] - before) / size < 0.1
