"""docs/abilities.md says what a run of the probes finds, and the facts on the configuration classes agree with it."""

import importlib.util
from pathlib import Path

from adaptformer import AdaptFormerConfig

from hf_i2v.methods import OWN

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("abilities", DOCS / "abilities.py")
abilities = importlib.util.module_from_spec(spec)
spec.loader.exec_module(abilities)


def rows(text: str) -> list[dict[str, str]]:
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(table[0], line, strict=True)) for line in table[2:]]


def test_the_page_is_what_the_probes_find():
    found = rows(abilities.page(abilities.probe(list(OWN))))
    written = rows((DOCS / "abilities.md").read_text())
    assert [row["method"] for row in found] == [row["method"] for row in written]
    for here, there in zip(found, written, strict=True):  # a library may be missing here
        assert here == {key: here[key] if here[key] == "unknown" else value for key, value in there.items()}
    for row, config in zip(found, OWN, strict=True):
        assert (row["merges"] == "yes") == config.merges
        assert (row["composes with"] == "none") == (config.why_alone is not None)
        assert (row["streams"] == "yes") == (config.why_not_causal is None)
        assert (row["trains from a cache"] == "yes") == (not config.uses_temporal_embedding)


def test_an_outside_method_is_probed_by_the_same_code():
    row = abilities.probe([OWN[0], AdaptFormerConfig])["adaptformer"]
    assert {key: found.value for key, found in row.items() if found.value != "unknown"} == {
        "merges": "no", "bakes": "yes", "composes with": "all", "trains from a cache": "yes", "exports": "yes",
        "streams": "yes",
    }  # fmt: skip
    assert "no linear map" in row["merges"].reasons[0]
