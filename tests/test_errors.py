"""How a field that pydantic refuses is told, whoever has read it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from composir.errors import wrong_fields


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = ""
    depth: int = Field(default=1, gt=0)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    size: int = Field(default=1, ge=1, le=5000)
    rate: float = Field(default=0.5, gt=0, lt=1)
    least: int = Field(default=0, ge=0)
    kind: str = "A"
    places: list[Place] = Field(default_factory=list)

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind != "A":
            raise ValueError("Expected A")
        return kind


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ["name is missing"]),
        ({"size": 5001}, ["size = 5001: expected a whole number, at least 1 and at most 5,000"]),
        ({"size": "2"}, ["size = '2': expected a whole number, at least 1 and at most 5,000"]),
        ({"rate": 1.0}, ["rate = 1.0: expected a number, above 0 and below 1"]),
        ({"least": -1}, ["least = -1: expected a whole number, at least 0"]),
        ({"kind": "B"}, ["kind = 'B': expected A"]),
        ({"name": ["long"] * 30}, [f"name = {str(['long'] * 30)[:57]}...: input should be a valid string"]),
        ({"size_": 3, "colour": 1}, ["unknown key 'size_' (did you mean 'size'?)",
                                    "unknown key 'colour' (one of: kind, least, name, places, rate, size)"]),
        ({"places": [{}, {"path": 3, "size": 1, "depth": 0}]}, [
            "places.1.path = 3: input should be a valid string",
            "places.1.depth = 0: input should be greater than 0",
            "unknown key 'places.1.size'",
        ]),
    ],
)  # fmt: skip
def test_each_field_is_one_line_with_its_value_and_what_it_may_be(settings, lines):
    with pytest.raises(ValidationError) as error:
        Settings(**({"name": "x"} if settings else {}) | settings)
    assert wrong_fields(error.value, Settings) == lines


def test_what_is_wrong_as_a_whole_has_no_name():
    with pytest.raises(ValidationError) as error:
        Settings.model_validate_json("{")
    assert [line[:12] for line in wrong_fields(error.value, Settings)] == ["invalid JSON"]
