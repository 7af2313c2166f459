"""Weights in every layout that people have: as LAVIS publishes them, and as trainings of all kinds save them."""

from __future__ import annotations

import argparse
import json
import pickle
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from composir.errors import ComposirError
from composir.models import backbones, vit
from composir.models.backbones import build
from composir.models.checkpoint import from_pretrained, save_pretrained, weights_hash
from composir.models.transfer import SPRC_CLASS, convert
from composir.models.weights import start
from composir.models.weights.sources import open_source

from .conftest import HEADS, WIDTH

pytestmark = pytest.mark.usefixtures("small_heads")

VOCABULARY = 30_523
TOWERS = [("vit_eva", "eva_vit_g.pth", "pretrain"), ("vit_clip", "clip_vit_L.pth", "pretrain_vitL")]


def is_tower(key):
    return key.startswith("visual_encoder.")


def split(weights):
    """Return what LAVIS publishes as two files: all but the tower, and the tower by bare names in fp16."""
    start = {key: value for key, value in weights.items() if not is_tower(key)}
    return start, {key.removeprefix("visual_encoder."): value.half() for key, value in weights.items() if is_tower(key)}


def half_tower(weights):
    """Return weights whose tower has gone through fp16, as the published one has."""
    return {key: value.half().float() if is_tower(key) else value for key, value in weights.items()}


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


@pytest.fixture
def control(whole, tmp_path):
    """Return a whole model's weights by LAVIS's names, and the hash of what they convert to."""

    def make(tower="vit_eva", vocabulary=None, *, prompt=False):
        weights = half_tower(whole(tower, vocabulary, prompt=prompt))
        file = save(tmp_path / "control" / "control.pth", {"model": weights})
        convert(str(file), "lavis", tmp_path / "control" / "model", embed_tower=True)
        return weights, weights_hash(from_pretrained(tmp_path / "control" / "model"))

    return make


# -- the tower in a file of its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "file", "backbone"), TOWERS)
def test_two_files_make_the_model_of_one(run, control, tmp_path, *, tower, file, backbone):
    weights, expected = control(tower)
    start, alone = split(weights)
    model, eyes = save(tmp_path / "blip2_pretrained.pth", {"model": start}), save(tmp_path / file, alone)
    flags = ["--from", "lavis", model, "--vision-tower", eyes, "--out", tmp_path / "joined"]
    code, out, err = run("convert", *flags, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["tower"] == "embedded"
    assert set(document["mapped"]) | {one["key"] for one in document["dropped"]} == set(weights)
    model.unlink()
    eyes.unlink()
    assert weights_hash(from_pretrained(tmp_path / "joined")) == expected


@pytest.mark.parametrize("form", ["lavis", "sprc"])
def test_without_its_tower_a_model_works_on_tokens_and_gets_it_later(run, control, tmp_path, form):
    weights, expected = control(prompt=form == "sprc")
    start, alone = split(weights)
    file = save(tmp_path / "my weights.pth", {"model" if form == "lavis" else SPRC_CLASS: start})
    eyes = save(tmp_path / "eva_vit_g.pth", alone)
    code, out, err = run("convert", "--from", form, file, "--out", tmp_path / "on tokens")
    assert code == 0, err
    command = f"composir convert --from composir '{tmp_path}/on tokens' --vision-tower FILE --out NEW"
    assert f"no vision tower in it: the model works on image tokens; to join one: {command}" in out
    blind = from_pretrained(tmp_path / "on tokens")
    assert blind.tower is None
    words = shlex.split(command.replace("FILE", shlex.quote(str(eyes))).replace("NEW", str(tmp_path / "joined")))
    code, out, err = run(*words[1:], "--json")
    assert code == 0, err
    assert json.loads(out)["tower"] == "embedded"
    joined = from_pretrained(tmp_path / "joined")
    assert weights_hash(joined) == expected
    tokens, ids = torch.randn(2, 17, WIDTH), torch.tensor([[5, 6, 7], [8, 9, 10]])
    mask = torch.ones_like(ids)
    assert torch.equal(blind.encode_query(tokens, ids, mask), joined.encode_query(tokens, ids, mask))


def test_a_checkpoint_takes_a_tower_only_where_it_has_none(run, control, golden, tmp_path):
    weights, _ = control()
    eyes = save(tmp_path / "eva_vit_g.pth", split(weights)[1])
    whole = tmp_path / "control/model"

    def refusal(source, *flags):
        code, out, err = run("convert", "--from", "composir", source, "--out", tmp_path / "x", *flags)
        assert (code, out) == (2, "")
        assert not (tmp_path / "x").exists()
        return err

    assert "needs no conversion; fix: give --vision-tower" in refusal(whole)
    assert "has its vision tower already" in refusal(whole, "--vision-tower", eyes)
    convert(str(save(tmp_path / "golden.pt", {SPRC_CLASS: without_norm(golden("weights"))})), "sprc", tmp_path / "bare")
    assert "has no weights of the norm between a vision tower and the Q-Former (ln_vision)" in refusal(
        tmp_path / "bare", "--vision-tower", eyes
    )


def without_norm(weights):
    return {key: value for key, value in weights.items() if not key.startswith("ln_vision.")}


def test_a_tower_that_does_not_belong_is_one_line(run, control, tmp_path):
    weights, _ = control()
    start, alone = split(weights)
    files = {
        "q.pth": {"model": start},
        "whole.pth": {"model": weights},
        "eva_vit_g.pth": alone,
        "wide.pth": {key: torch.cat([value, value]) if key == "patch_embed.proj.weight" else value
                     for key, value in alone.items()},
        "short.pth": {**alone, "pos_embed": alone["pos_embed"][..., :-1]},
        "rest.pth": {**alone, "rel_pos_bias.relative_position_bias_table": torch.zeros(2)},
    }  # fmt: skip
    for name, content in files.items():
        save(tmp_path / name, content)

    def refusal(source, tower):
        code, out, err = run(
            "convert", "--from", "lavis", tmp_path / source, "--vision-tower", tmp_path / tower, "--out", tmp_path / "x"
        )
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert not (tmp_path / "x").exists()
        return err

    assert "whole.pth: has a vision tower of its own; fix: leave out" in refusal("whole.pth", "eva_vit_g.pth")
    assert "q.pth: holds no vision tower; expected LAVIS's eva_vit_g.pth" in refusal("q.pth", "q.pth")
    assert "the tower is 128 wide, and the Q-Former reads tokens 64 wide" in refusal("q.pth", "wide.pth")
    assert "visual_encoder.pos_embed is (1, 17, 63) instead of (1, 17, 64)" in refusal("q.pth", "short.pth")
    assert "unexpected visual_encoder.rel_pos_bias.relative" in refusal("q.pth", "rest.pth")


@pytest.mark.parametrize(("tower", "file", "backbone"), TOWERS)
def test_a_tower_alone_says_what_it_belongs_to(run, control, tmp_path, *, tower, file, backbone):
    eyes = save(tmp_path / "two words" / file, split(control(tower)[0])[1])
    code, _, err = run("convert", "--from", "lavis", eyes, "--out", tmp_path / "x")
    name = "blip2_pretrained.pth" if tower == "vit_eva" else "blip2_pretrained_vitL.pth"
    assert code == 2
    assert f"is the vision tower alone, {'EVA ViT-g' if tower == 'vit_eva' else 'CLIP ViT-L'}, with no Q-Former" in err
    assert f"fix: composir convert --from lavis {name} --vision-tower '{eyes}' --out DIR" in err


@pytest.mark.parametrize(
    ("tower", "blocks", "rest"),
    [
        ("vit_eva", "blocks", ["norm.weight", "fc_norm.bias", "head.weight", "lm_head.bias", "mask_token"]),
        ("vit_clip", "transformer.resblocks", ["ln_post.weight", "proj"]),
    ],
)
def test_what_the_published_tower_holds_beyond_blip2_is_dropped_by_name(
    run, control, tmp_path, monkeypatch, *, tower, blocks, rest
):
    weights, expected = control(tower)
    start, alone = split(weights)
    last = max(int(key.removeprefix(f"{blocks}.").split(".")[0]) for key in alone if key.startswith(blocks))
    monkeypatch.setattr(vit, "NUM_BLOCKS_BY_WIDTH", {WIDTH: last + 1})
    further = {
        key.replace(f"{blocks}.{last}.", f"{blocks}.{last + 1}."): value
        for key, value in alone.items()
        if key.startswith(f"{blocks}.{last}.")
    }
    beyond = {**further, **{key: torch.zeros(2) for key in rest}}
    eyes = save(tmp_path / "tower.pth", {**alone, **beyond})
    model = save(tmp_path / "q.pth", {"model": start})
    code, out, err = run(
        "convert", "--from", "lavis", model, "--vision-tower", eyes, "--out", tmp_path / "joined", "--json"
    )
    assert code == 0, err
    dropped = {one["key"]: one["reason"] for one in json.loads(out)["dropped"]}
    assert set(prefixed("visual_encoder.", beyond)) <= set(dropped)
    assert f"behind {last + 1} of its blocks" in dropped[f"visual_encoder.{next(iter(further))}"]
    assert weights_hash(from_pretrained(tmp_path / "joined")) == expected


def test_blip2_has_39_of_evas_blocks_and_23_of_clips():
    assert vit.NUM_BLOCKS_BY_WIDTH == {1408: 39, 1024: 23}


@pytest.mark.parametrize(("tower", "file", "backbone"), TOWERS)
def test_training_finds_both_files_in_one_folder(control, tmp_path, shapes_root, *, tower, file, backbone):
    weights, _ = control(tower, VOCABULARY)
    start, alone = split(weights)
    folder = tmp_path / "downloads"
    save(folder / "blip2_pretrained.pth", {"model": start})
    save(folder / file, alone)
    save(folder / "blip2_pretrained_opt2.7b.pth", {"model": {**as_opt(start)}})
    save(folder / "resnet50.pth", {"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.bias": torch.zeros(3)})
    save(folder / "notes.pt", {"args": argparse.Namespace(lr=1)})
    torch.manual_seed(0)
    model = build(backbone, str(folder)).eval()
    torch.manual_seed(0)
    assert weights_hash(model) == weights_hash(build(backbone, str(tmp_path / "control" / "control.pth")))
    save_pretrained(model, tmp_path / "run")  # the run's checkpoint finds the two again
    backbones.read_backbone.cache_clear()
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert torch.equal(from_pretrained(tmp_path / "run").embed_target(files), model.embed_target(files))
    done = convert(str(folder), "lavis", tmp_path / "converted")
    assert done.tower == "referenced"
    backbones.read_backbone.cache_clear()
    assert from_pretrained(tmp_path / "converted").tower.fingerprint() == model.tower.fingerprint()


def as_opt(start):
    """Return what LAVIS publishes of a model with OPT: no words, no projections into the common space."""
    gone = (".word_embeddings.", ".position_embeddings.", "vision_proj.", "text_proj.", "itm_head.", "Qformer.cls.")
    kept = {key: value for key, value in start.items() if not any(part in key for part in gone)}
    return {**kept, "opt_proj.weight": torch.zeros(8, WIDTH), "opt_proj.bias": torch.zeros(8)}


def test_a_folder_with_two_models_is_not_guessed_at(control, tmp_path):
    start, alone = split(control()[0])
    for name in ("a.pth", "b.pth"):
        save(tmp_path / "both" / name, {"model": start})
    with pytest.raises(ComposirError, match=r"both: holds 2 models: a\.pth, b\.pth; expected one.*composir convert"):
        build("pretrain", str(tmp_path / "both"))
    (tmp_path / "both/b.pth").unlink()
    for name in ("c.pth", "d.pth"):
        save(tmp_path / "both" / name, alone)
    with pytest.raises(ComposirError, match=r"holds 2 vision towers: c\.pth, d\.pth"):
        build("pretrain", str(tmp_path / "both"))
    (tmp_path / "both/a.pth").unlink()
    with pytest.raises(ComposirError, match=r"holds c\.pth, a vision tower, and no Q-Former"):
        build("pretrain", str(tmp_path / "both"))


def test_a_folder_with_the_files_of_both_sizes_gives_each_its_own(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "WIDTHS", {"pretrain": WIDTH, "pretrain_vitL": 32})
    wide = whole("vit_eva")
    first, alone = split(wide)
    narrow = {
        key: torch.randn(value.shape[0], 32)
        if ".crossattention.self." in key and key.endswith(("key.weight", "value.weight"))
        else value
        for key, value in without_norm(first).items()
    }
    save(tmp_path / "l.pth", {"model": narrow})
    save(tmp_path / "g.pth", {"model": first})
    save(tmp_path / "eva_vit_g.pth", alone)
    found = open_source(str(tmp_path), width=WIDTH)
    assert found.tower is not None
    assert {"ln_vision.weight"} <= set(found.weights)
    assert open_source(str(tmp_path), width=32).tower is None


def test_training_from_half_of_the_pair_says_where_the_other_half_is(control, tmp_path):
    file = save(tmp_path / "my q.pth", {"model": split(control(vocabulary=VOCABULARY)[0])[0]})
    with pytest.raises(ComposirError) as error:
        build("pretrain", str(file))
    assert "holds no vision tower: the model would work on image tokens only" in str(error.value)
    assert "fix: give a folder with eva_vit_g.pth beside it, or join the two: composir convert --from lavis " in str(
        error.value
    )
    assert f"'{file}' --out '{tmp_path}/my q' --vision-tower eva_vit_g.pth" in str(error.value)
    convert(str(file), "lavis", tmp_path / "on tokens")
    with pytest.raises(ComposirError, match=r"holds no vision tower.*--from composir '.*on tokens' .*--vision-tower"):
        build("pretrain", str(tmp_path / "on tokens"))


# -- prefixes and wrappers ---------------------------------------------------------------------------------------------

LAYOUTS = {
    "module.": lambda w: {"epoch": 7, SPRC_CLASS: prefixed("module.", w)},
    "DistributedDataParallel": lambda w: {"epoch": 7, "DistributedDataParallel": prefixed("module.", w)},
    "_orig_mod.": lambda w: {SPRC_CLASS: prefixed("_orig_mod.", w)},
    "module._orig_mod.": lambda w: {SPRC_CLASS: prefixed("module._orig_mod.", w)},
    "Lightning": lambda w: {
        "state_dict": {**prefixed("model.", w), "loss.weight": torch.zeros(1)},
        "pytorch-lightning_version": "2.1.0",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    },
    "LAVIS's runner": lambda w: {"model": w, "optimizer": {"state": {}}, "config": {}, "scaler": None, "epoch": 3},
    "DeepSpeed": lambda w: {"module": prefixed("module.", w), "ds_version": "0.12", "optimizer": None},
    "bare, with a number": lambda w: {**w, "epoch": 3},
    "inside": lambda w: {SPRC_CLASS: {key.replace("Qformer.", "Qformer._orig_mod."): one for key, one in w.items()}},
    "a name of one's own": lambda w: {"state_dict": prefixed("net.student.", w)},
}


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ("module.", {"prefix": "module."}),
        ("DistributedDataParallel", {"prefix": "module.", "state": "DistributedDataParallel"}),
        ("_orig_mod.", {"prefix": "_orig_mod."}),
        ("module._orig_mod.", {"prefix": "module._orig_mod."}),
        ("Lightning", {"prefix": "model.", "state": "state_dict", "saved_by": "Lightning"}),
        ("LAVIS's runner", {"prefix": "", "state": "model", "saved_by": "LAVIS's runner"}),
        ("DeepSpeed", {"prefix": "module.", "state": "module", "saved_by": "DeepSpeed"}),
        ("bare, with a number", {"prefix": "", "state": ""}),
        ("inside", {"prefix": "_orig_mod."}),
        ("a name of one's own", {"prefix": "net.student."}),
    ],
)
def test_every_way_of_saving_gives_the_same_model(run, control, tmp_path, layout, named):
    weights, expected = control(prompt=True)
    file = save(tmp_path / "tuned.pt", LAYOUTS[layout](weights))
    code, out, err = run("convert", "--from", "sprc", file, "--out", tmp_path / "model", "--embed-tower", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["layout"] == {"state": SPRC_CLASS, "others": [], "saved_by": ""} | document["layout"] | named
    dropped = {one["key"]: one["reason"] for one in document["dropped"]}
    stray = {"loss.weight"} if layout == "Lightning" else set()
    assert set(document["mapped"]) | set(dropped) == set(weights) | stray
    assert all(dropped[key] == "not under 'model.', as the model is" for key in stray)
    assert weights_hash(from_pretrained(tmp_path / "model")) == expected
    _, out, _ = run("convert", "--from", "sprc", file, "--out", tmp_path / "again")
    assert (f"recognised: {named['prefix']!r} taken off the names of the weights" in out) == bool(named["prefix"])
    assert ("recognised: as " in out) == ("saved_by" in named)
    trained = build("pretrain", str(file)).own_weights()  # train --weights takes what convert takes
    start = build("pretrain", str(tmp_path / "control/control.pth")).own_weights()
    fresh = tuple(name for name in start if name.startswith("gated_fusion."))
    assert all(torch.equal(trained[name], start[name]) for name in start if name not in fresh)


@pytest.mark.parametrize("names", [["model.safetensors"], ["pytorch_model.bin"]])
def test_a_folder_of_accelerate_is_taken_as_it_is(run, control, tmp_path, names):
    weights, expected = control(prompt=True)
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    for name in names:
        if name.endswith(".bin"):
            torch.save(weights, folder / name)
        else:
            save_file(weights, folder / name)
    torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, folder / "optimizer.bin")
    torch.save({"scale": 1.0}, folder / "scaler.pt")
    code, out, err = run("convert", "--from", "sprc", folder, "--out", tmp_path / "model", "--embed-tower", "--json")
    assert code == 0, err
    assert json.loads(out)["layout"]["saved_by"] == "Accelerate"
    assert weights_hash(from_pretrained(tmp_path / "model")) == expected


def test_shards_of_accelerate_are_taken_as_one(control, tmp_path):
    weights, expected = control(prompt=True)
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    places = {}
    for number in (0, 1):
        part = {key: value for place, (key, value) in enumerate(weights.items()) if place % 2 == number}
        save_file(part, folder / f"model-{number}.safetensors")
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    done = convert(str(folder), "sprc", tmp_path / "model", embed_tower=True)
    assert done.layout.saved_by == "Accelerate"
    assert weights_hash(from_pretrained(tmp_path / "model")) == expected


# -- several sets of weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lay", "model", "average"),
    [
        (lambda w, ema: {"model": w, "ema": ema}, "model", "ema"),
        (lambda w, ema: {"model": w, "ema": {"decay": 0.999, "shadow": ema}}, "model", "ema.shadow"),
        (
            lambda w, ema: {"state_dict": prefixed("model.", w) | prefixed("ema.module.", ema)},
            "state_dict.model",
            "state_dict.ema.module",
        ),
        (lambda w, ema: w | prefixed("ema.", ema), ".", "ema"),
    ],
)
def test_a_model_and_its_average_are_told_apart(run, control, tmp_path, *, lay, model, average):
    weights, expected = control(prompt=True)
    ema = weights | {"vision_proj.bias": weights["vision_proj.bias"] + 1}
    file = save(tmp_path / "both.pt", lay(weights, ema))
    code, out, err = run("convert", "--from", "sprc", file, "--out", tmp_path / "model")
    assert (code, out) == (2, "")
    assert f"holds 2 sets of weights: {model}, {average}; expected one, or to be told which" in err
    words = shlex.split(err.strip().partition("choose with --state-dict: ")[2])
    assert words[-2:] == ["--state-dict", model]
    code, out, err = run(*words[1:], "--embed-tower", "--json")
    assert code == 0, err
    assert json.loads(out)["layout"]["others"] == [average]
    assert weights_hash(from_pretrained(tmp_path / "both")) == expected
    code, out, err = run("convert", "--from", "sprc", file, "--out", tmp_path / "ema", "--state-dict", average)
    assert code == 0, err
    assert f"beside other weights under {model!r}, which were not read" in out
    assert torch.equal(from_pretrained(tmp_path / "ema").vision_proj.bias, ema["vision_proj.bias"])
    code, _, err = run("convert", "--from", "sprc", file, "--out", tmp_path / "x", "--state-dict", "emma")
    assert code == 2
    assert f"holds no weights of a model under 'emma'; expected one of {model}, {average}" in err


def test_a_temperature_that_is_not_there_starts_fresh_and_is_named(run, control, tmp_path):
    weights, _ = control()
    del weights["temp"]
    file = save(tmp_path / "q.pth", {"model": weights})
    code, out, err = run("convert", "--from", "lavis", file, "--out", tmp_path / "model")
    assert code == 0, err
    assert "not there, start fresh: prompt_tokens, temperature" in out
    assert from_pretrained(tmp_path / "model").temperature.item() == pytest.approx(0.07)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named_and_refused(run, control, tmp_path, number):
    weights, _ = control(prompt=True)
    names = ["visual_encoder.blocks.0.mlp.fc1.bias", "vision_proj.weight"]
    for name in names:
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] = number
    file = save(tmp_path / "tuned.pt", {SPRC_CLASS: weights})
    code, out, err = run("convert", "--from", "sprc", file, "--out", tmp_path / "model")
    assert (code, out) == (2, "")
    assert f"holds weights that are not numbers, or infinite: {', '.join(names)};" in err
    assert not (tmp_path / "model").exists()
    with pytest.raises(ComposirError, match="holds weights that are not numbers"):
        build("pretrain", str(file))


def test_a_checkpoint_of_a_failed_training_is_refused(tmp_path):
    model = build("tiny")
    with torch.no_grad():
        model.query_tokens[0, 0, 0] = float("nan")
    save_pretrained(model, tmp_path / "model")
    with pytest.raises(ComposirError, match=r"model\.safetensors: holds weights that are not numbers.*: query_tokens;"):
        from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(("part", "words"), [("opt_", "with OPT"), ("t5_", "with T5"), ("llm_", "a language model")])
def test_a_model_that_answers_in_words_is_recognised(run, control, tmp_path, part, words):
    weights = {key.replace("opt_", part): value for key, value in as_opt(split(control()[0])[0]).items()}
    file = save(tmp_path / "blip2_caption.pth", {"model": weights})
    code, _, err = run("convert", "--from", "lavis", file, "--out", tmp_path / "model")
    assert code == 2
    assert "is a model that answers in words, with" in err
    assert words in err
    assert "fix: give BLIP-2's first stage: blip2_pretrained.pth" in err


def test_no_more_than_20_keys_are_listed_and_the_rest_is_counted(run, control, tmp_path):
    weights, _ = control()
    gone = [key for key in weights if ".layer.1." in key or ".layer.2." in key]
    for key in gone:
        del weights[key]
    weights |= {f"further.{number}": torch.zeros(1) for number in range(50)}
    file = save(tmp_path / "q.pth", {"model": weights})
    code, _, err = run("convert", "--from", "lavis", file, "--out", tmp_path / "model")
    assert code == 2
    problems = err.partition("such a model: ")[2].partition("; expected")[0].split("; ")
    assert len(problems) == 21
    shown = [problem.split(" ")[0] for problem in problems[:20]]
    assert set(shown) == {"missing", "unexpected"}  # of either kind some
    total = int(problems[20].removeprefix("and ").removesuffix(" more").replace(",", "")) + 20
    assert total >= 50 + 16


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_class_in_a_pickle_is_refused_without_the_advice_to_allow_it(run, control, tmp_path):
    weights, _ = control(prompt=True)
    file = save(tmp_path / "tuned.pt", {"args": argparse.Namespace(lr=1e-5), SPRC_CLASS: weights})
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"args": argparse.Namespace(lr=1e-5)}))
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), script)
    for one, what in ((file, "the class argparse.Namespace"), (script, "being a TorchScript archive"), (plain, "")):
        code, out, err = run("convert", "--from", "sprc", one, "--out", tmp_path / "model")
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert what in err
        assert not any(word in err for word in ("weights_only", "safe_globals", "allowlist", "trust"))
    assert (
        "torch.save(model.state_dict(), 'weights.pt')"
        in run("convert", "--from", "sprc", file, "--out", tmp_path / "model")[2]
    )


def test_a_file_given_as_a_model_is_answered_with_the_command_that_converts_it(run, control, shapes_root, tmp_path):
    weights, expected = control(vocabulary=VOCABULARY, prompt=True)
    file = save(tmp_path / "my runs" / "it's tuned.pt", {"epoch": 1, SPRC_CLASS: prefixed("module.", weights)})
    for command in (
        ["evaluate", "--dataset", "CIRR", "--data-root", shapes_root],
        ["index", shapes_root / "dev", "--out", tmp_path / "index"],
    ):
        code, _, err = run(*command, "--model", file)
        assert code == 2
        assert "is no checkpoint of composir yet, but a .pt file that SPRC's training saved" in err
        words = shlex.split(err.strip().partition("fix: convert it once: ")[2])
    out = tmp_path / "my runs" / "it's tuned"
    assert words == ["composir", "convert", "--from", "sprc", str(file), "--out", str(out)]
    code, _, err = run(*words[1:])
    assert code == 0, err
    assert weights_hash(from_pretrained(out)) == expected


def test_a_model_on_tokens_says_how_it_gets_its_tower(run, control, shapes_root, tmp_path):
    file = save(tmp_path / "q.pth", {"model": split(control(vocabulary=VOCABULARY)[0])[0]})
    model = tmp_path / "on tokens"
    convert(str(file), "lavis", model)
    picture = next((shapes_root / "dev").glob("*.png"))
    for command in (
        ["evaluate", "--dataset", "CIRR", "--data-root", shapes_root],
        ["index", shapes_root / "dev", "--out", tmp_path / "index"],
        ["visualize", "--image", picture, "--text", "red", "--out", tmp_path / "map.png"],
    ):
        code, out, err = run(*command, "--model", model)
        assert (code, out) == (2, ""), err
        assert "has no vision tower and cannot embed pictures; fix: join one: composir convert --from composir" in err
        words = shlex.split(err.partition("join one: ")[2])
    assert words[-5:] == [str(model), "--out", f"{model}-composir", "--vision-tower", "eva_vit_g.pth"]


def test_other_things_given_as_a_model_are_answered_as_well(control, tmp_path):
    start, alone = split(control()[0])
    with pytest.raises(ComposirError, match="is the vision tower alone"):
        from_pretrained(save(tmp_path / "eva_vit_g.pth", alone))
    with pytest.raises(ComposirError, match=r"--from lavis .*q\.pth --out .*q --vision-tower eva_vit_g\.pth"):
        from_pretrained(save(tmp_path / "q.pth", {"model": start}))
    folder = tmp_path / "both"
    save(folder / "q.pth", {"model": start})
    save(folder / "eva_vit_g.pth", alone)
    with pytest.raises(ComposirError, match=r"--from lavis .*both --out .*both-composir"):
        from_pretrained(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "blip-2"}')
    save_file({"qformer.encoder.x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(
        ComposirError, match=r"convert it once: composir convert --from hf .*both --out .*both-composir"
    ):
        from_pretrained(folder)


# -- a tower in half precision -----------------------------------------------------------------------------------------


def test_a_tower_in_half_precision_is_stored_so_that_it_loads(control, tmp_path, monkeypatch, shapes_root):
    weights, _ = control(vocabulary=VOCABULARY)
    weights = {key: value + 1e-5 if is_tower(key) else value for key, value in weights.items()}  # fp16 cannot hold it
    model = build("pretrain", str(save(tmp_path / "q.pth", {"model": weights}))).eval()
    exact = model.tower.fingerprint()
    monkeypatch.setattr(vit.Tower, "dtype_on", lambda self, device: torch.float16)
    model.to("cpu")  # as if it were a GPU
    assert torch.float16 in {weight.dtype for weight in model.tower.network.parameters()}
    save_pretrained(model, tmp_path / "model", embed_tower=True)
    kept = {one.dtype for one in load_file(tmp_path / "model/tower.safetensors").values()}
    assert kept == {torch.float16, torch.float32}
    again = from_pretrained(tmp_path / "model")
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert torch.equal(again.embed_target(files), model.embed_target(files))
    assert again.tower.fingerprint() != exact  # other weights on a CPU, and so another hash
    save_pretrained(again, tmp_path / "once more", embed_tower=True)
    assert weights_hash(from_pretrained(tmp_path / "once more")) == weights_hash(again)


def test_a_tower_whose_heads_only_the_user_knows_is_stored(run, whole, sizes_file, tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "NUM_HEADS_BY_WIDTH", {})
    assert json.loads(sizes_file.read_text())["vit_num_attention_heads"] == HEADS
    file = save(tmp_path / "q.pth", {"model": whole()})
    code, out, err = run(
        "convert", "--from", "lavis", file, "--out", tmp_path / "model", "--qformer-config", sizes_file
    )
    assert code == 0, err
    assert "the vision tower is stored, as the source alone does not bring it back" in out
    backbones.read_backbone.cache_clear()
    assert from_pretrained(tmp_path / "model").tower is not None


def test_a_second_qformer_for_queries_is_refused_and_named(control, tmp_path):
    """As SPN4CIR saves it: half of such a file would be another model."""
    weights, _ = control(prompt=True)
    second = {key.replace("Qformer.", "Qformer_query."): value for key, value in weights.items() if "Qformer." in key}
    second |= {key.replace("text_proj", "text_proj_q"): value for key, value in weights.items() if "text_proj" in key}
    file = save(tmp_path / "best.pt", {"epoch": 3, "state_dict": prefixed("blip_model.", weights | second)})
    with pytest.raises(ComposirError, match="has a Q-Former of its own for queries"):
        convert(str(file), "sprc", tmp_path / "out", embed_tower=True)
    assert not (tmp_path / "out").exists()
