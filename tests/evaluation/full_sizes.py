"""The rules and sizes of the published splits, as ``full_size`` takes them."""

from __future__ import annotations

CIRR = {"dataset": "CIRR", "exclude_reference": True, "text_rule": "as annotated"}
FASHIONIQ = {"dataset": "FashionIQ", "exclude_reference": False, "text_rule": "both captions"}
CIRR_VAL = {"": (4181, 2297)}
FASHIONIQ_VAL = {"dress": (2017, 3817), "shirt": (2038, 6346), "toptee": (1961, 5373)}
FASHIONIQ_UNION = {"dress": (2017, 2628), "shirt": (2038, 3089), "toptee": (1961, 2902)}
