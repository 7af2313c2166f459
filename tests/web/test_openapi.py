"""The interface is what its OpenAPI document says, for requests that fit it and for ones that do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance

NUM_EXAMPLES = 15
"""Of each operation and kind: the hostile requests that matter most are in test_safety.py."""
OPERATIONS = (
    ("POST", "/api/search"),
    ("POST", "/api/heat"),
    ("POST", "/api/meant"),
    ("GET", "/api/images"),
    ("GET", "/api/examples"),
    ("GET", "/api/images/{image_id}"),
    ("GET", "/api/health"),
    ("GET", "/metrics"),
)


@pytest.fixture(scope="module")
def document(shapes_index, running, tmp_path_factory) -> Iterator[BaseSchema]:
    choices = tmp_path_factory.mktemp("meant") / "choices.jsonl"
    with running(shapes_index, record=choices) as server:
        yield schemathesis.openapi.from_url(f"{server.address}/openapi.json")


def test_a_body_is_described_in_each_of_its_kinds(document):
    asked = {"negative_text", "top_k", "where", "keep_reference", "image_ids", "texts", "without", "image_weight"}
    for path, more in (("/api/search", asked | {"min_score", "more", "less"}), ("/api/heat", set())):
        content = document.raw_schema["paths"][path]["post"]["requestBody"]["content"]
        fields = {kind: set(one["schema"]["properties"]) for kind, one in content.items()}
        plain = {"image_id", "text"} | more
        assert fields == {
            "multipart/form-data": plain | {"image"},
            "application/x-www-form-urlencoded": plain,
            "application/json": plain,
        }
        for one in content.values():
            assert one["schema"]["additionalProperties"] is False
            assert all("description" in field for field in one["schema"]["properties"].values())


def test_these_are_all_operations(document):
    assert {one.ok().label for one in document.get_all_operations()} == {" ".join(one) for one in OPERATIONS}


@pytest.mark.parametrize(
    ("operation", "mode"),
    [(one, GenerationMode.POSITIVE) for one in OPERATIONS]
    + [
        (one, GenerationMode.NEGATIVE)
        for one in OPERATIONS
        if one[1] not in ("/api/examples", "/api/health", "/metrics")
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else one.value,
)
def test_every_operation_answers_as_its_description_says(document, operation, mode):
    """All of schemathesis' checks, but that whatever fits the document is taken: most bytes are no picture."""
    method, path = operation

    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case) -> None:
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
