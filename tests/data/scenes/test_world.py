from __future__ import annotations

from composir.data.scenes.world import Edit, Mention, Object, Scene


def test_mentions_find_what_they_name():
    scene = Scene("white", (Object("red", "star", "large"), Object("red", "cross", "small"), *[None] * 7))
    assert Mention(colour="red").find(scene) == [0, 1]
    assert Mention(colour="red", size="small").find(scene) == [1]
    assert Mention(shape="star", cells=(1, 2)).find(scene) == []
    assert Mention().find(scene) == [0, 1]


def test_edits_move_and_remove():
    star = Object("red", "star", "large")
    scene = Scene("white", (star, *[None] * 8))
    assert Edit("move", 0, 8, star).apply(scene) == Scene("white", (*[None] * 8, star))
    assert Edit("remove", 0, 0, None).apply(scene) == Scene("white", (None,) * 9)
