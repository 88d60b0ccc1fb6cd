"""The page of formats says what the models check."""

from tests.helpers.paths import ROOT
from thought_saes.activations.formats import CacheMetadata
from thought_saes.reporting.formats import FILES, fields_of, page


def test_the_page_is_what_the_models_say() -> None:
    assert (ROOT / "docs" / "formats.md").read_text() == page(), (
        "python -m thought_saes.reporting.formats > docs/formats.md"
    )


def test_every_file_says_what_it_is_and_every_field_of_a_cache_has_words() -> None:
    for model in FILES:
        assert model.__doc__
        assert model.file in page()
    lines = [line for line in fields_of(CacheMetadata).splitlines() if line.startswith("| `")]
    assert all(line.split("|")[4].strip() for line in lines)
