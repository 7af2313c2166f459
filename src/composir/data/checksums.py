"""The SHA-256 of annotation files as their authors publish them, to tell a copy from a changed one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

SHA256: dict[str, dict[str, str]] = {
    "CIRR": {
        "cap.rc2.val.json": "a85c3a1aa464f1af7229918e8018d08b8b20ce5dab479ffdf39d61113140f919",
        "cap.rc2.test1.json": "26a2b2e7a5c96c903491aefc7d5f237f03d3cca97712e1b6bb3b231db5ff8001",
        "split.rc2.train.json": "7b3f2211ff67e527190754ab778321a3c83f0baa6150d1e6c19646ec25c3bcb9",
        "split.rc2.val.json": "de36f7a7219c8bb06347a67748cfc68405be7dad62853a1e31846c98e491235b",
        "split.rc2.test1.json": "bf2bb9ed0659c4aae35de72350652b9ab75d36a060211f826bec15c58ec12566",
    },
    "FashionIQ": {
        "cap.dress.train.json": "1691bd52e5bbda755b0c1f14d1024000be2c57a0cc29511a327af1372636a946",
        "cap.dress.val.json": "5e5117d45695df9c3ca91fac3e0bc49e6422ae9c8b3793f0ac9b3ab83adb7de9",
        "cap.dress.test.json": "190240b3b4d115cd4f80de65ab78ca18a3f8581c041cbeea6f5a1f57ee4f5a48",
        "cap.shirt.train.json": "0999ce5da01a38f0cef1547941b738f4c56e225fdd9b8e03e2a6edaf292f94c3",
        "cap.shirt.val.json": "7b7ca3797b85dddfd83e74cdb4454cb63e3e7c09acef2590155efbacea6d7feb",
        "cap.shirt.test.json": "27c7551b005d4befa53135a7ddee5e31c97821eafd3ceb3fec514e7ac0ad83a7",
        "cap.toptee.train.json": "6daa171a9e744823087780a3b69b8b697bd05526adb6dd55a38ee6c4904ab348",
        "cap.toptee.val.json": "b4e09f428e6c255cc4b4ec46e77908305ab83075d82840c960be81af15cdc5eb",
        "cap.toptee.test.json": "db822aa52340ce1f09c3000064f79b60b6c476b50b98bf34200dd2996c06e146",
        "split.dress.train.json": "dcb1c7329003e85e39a3010147a620cee4b7de6a5ddf2626f253bc9a2cdd78e5",
        "split.dress.val.json": "21ff91d53c23859da91bfd49f3acc139b7f3a3dc944fc4e4a80194468cf14bab",
        "split.dress.test.json": "1d1d3af24b9ec4ed3f7805c53a870148df9b51e232b32912505d8ae54718353d",
        "split.shirt.train.json": "1552c05d866d31b43321a719b2cb8a65f02c53e9a6bc355861fe1d62498b9983",
        "split.shirt.val.json": "b82effbf7352a6f828b38c45eb32e53d726bd4d6fd81d6290c81eeb2c68e3234",
        "split.shirt.test.json": "8d243830e80e77c23c8dc9a85db87813230d38da146f0706082db812f591968b",
        "split.toptee.train.json": "aa9b3a55332340f21360fb6a3fe174badd27ce389fe7d78d890bf2b9032ffe05",
        "split.toptee.val.json": "ee42b2505275dd7a19b11ddb88c9264aab2d77f4e59b075fb1c7c3095d02f412",
        "split.toptee.test.json": "25a30d4f4013a04026585399b10980db7cba39dfaad0d97a0671a62e2125ddbf",
    },
    "CIRCO": {
        "val.json": "6b31a1dbc3c85627501d9a250f87708f24a27d74d6a65360b6ddd2537a154d04",
        "test.json": "2f7c37e89220c990b6b0525d6f3ed63d3fc02e03ce336aa42a3b822841b14886",
    },
    "GeneCIS": {
        "focus_object.json": "ee6de86ffb78ad989986b65f7e74e5627a90c1395a8cdc4aed8da3d92f4c016c",
        "change_object.json": "0a5145984f7d8594c457a3609288ae2acfcdb6b72bd0309220e616300c9beac8",
    },
    "Shoes": {
        "relative_captions_shoes.json": "717d815ca134f166d1a6e12a2b2e86b94dfdf22f3a45c3b984b59bfd89d91cdf",
        "train_im_names.txt": "dd7f58d8d65f95c17c585cd62efd3038a8a6ed4d8ee0d6153287f75b76d1c64f",
        "eval_im_names.txt": "f1fd756f9c9841119c2d601994f16338f4e9b8f2846aaec0748ba873654548f3",
    },
    "LaSCo": {
        "lasco_val_corpus.json": "448783f45a20cab61e0f099638011979b2fe81d34bed3d69cbc02ecc955557ac",
    },
    "MT-FashionIQ": {
        "dress.train.json": "910382f8ba5114f911be3068aeff217cfbbd9691a264455b98662c296dc636a7",
        "dress.val.json": "0fab57ee66f28054e3546eb676b42b083e66eb4ae45607b2a425ab078154e3df",
        "shirt.train.json": "0ce0dc3ecf18535bc78695c67709e355e990751ecc257e63681766f08b97c103",
        "shirt.val.json": "95279d8c36e7e14eb55bd98e4a2200d0fec5f61413617d3470cfd47d6cb9f332",
        "toptee.train.json": "885c671630d786de02c5d29d087c4ea2b5a1ba8fe725080a1e4d600c9d8327ed",
        "toptee.val.json": "5e834d286496590e763dfa00ec3657fe6a41d1e9e9947c1266d0c300d2def75b",
        "split.dress.train.json": "9ad820deefeec6de4af957c47bd9d7023451d07e1561ab5fa689aa05b7a45005",
        "split.dress.val.json": "643d22f7df5fe3a5ea1be7c3a496ea3226ef177f14e3de5ee210545f761c5d6b",
        "split.shirt.train.json": "576b52b609b390b9324972d7d1a59e4d4b7b46aa4e3ee69da13ad37935a383ce",
        "split.shirt.val.json": "56d3b88525040fab12558164ea31e19423e7fe22daedc8f541452e2cfdd6f87e",
        "split.toptee.train.json": "05dcf470d7cfd258a9b6ce538e3ce11201b77356beefaaa503707c3585f09068",
        "split.toptee.val.json": "76e09428cd3eb1bd8c4077ff5c2e022497abed2b40296edb742da7d0997e0811",
    },
    "PinPoint": {
        "pinpoint_licensed.parquet": "c17bb95b04488ae09f5c51d9d2f8840dded92e86f648250f068d619945e627e2",
        "index_signatures.txt": "eb8a387ca71f70c85d84bb4f764b461bcca2a3500a773f80fbc33f18f533d095",
    },
}
"""By data set and name of the file, each computed from the file itself; what is not here could not be had for that.

Sources: Cuberick-Orion/CIRR, branch ``cirr_dataset``; XiaoxiaoGuo/fashion-iq f71b16c; miccunifi/CIRCO 267b5c9;
facebookresearch/genecis 0c5c968; XiaoxiaoGuo/fashion-retrieval 9ac8b2c; levymsn/LaSCo 311f4d7;
yfyuan01/MultiturnFashionRetrieval cc192e6; pinterest/pinpoint-dataset e4ebb38.
"""


def are_published(dataset: str, files: Iterable[Path]) -> dict[Path, bool | None]:
    """Return for each file that is there whether it is the published one; None where nobody knows its hash."""
    known = SHA256.get(dataset, {})
    answers: dict[Path, bool | None] = {}
    for file in files:
        if file.is_file():
            expected = known.get(file.name)
            answers[file] = None if expected is None else hashlib.sha256(file.read_bytes()).hexdigest() == expected
    return answers
