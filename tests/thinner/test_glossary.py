"""thinner.evidence.glossary: each term is explained where it is marked, and listed once."""

import re

from markupsafe import Markup

from thinner.evidence.glossary import TERMS, Glossary, anchor


def test_a_sentence_has_each_of_its_terms_marked_once_and_its_words_unchanged() -> None:
    glossary = Glossary()
    text = "p-values of <b> and MACs, more MACs; parameters, intervals & 8 bits, a top-50 list"
    marked = glossary.marked(text)
    assert isinstance(marked, Markup)
    assert marked.striptags() == text
    assert re.findall(r'href="#([\w-]+)"', marked) == [
        "term-p-value", "term-macs", "term-interval", "term-int8",
    ]  # fmt: skip
    assert "<b>" not in marked and marked.count("&lt;b&gt;") == 1
    assert [name for _, name, _ in glossary.used()] == ["MACs", "int8", "interval", "p-value"]


def test_a_heading_is_explained_by_its_first_term_and_is_no_link() -> None:
    glossary = Glossary()
    assert glossary.heading("ms, batch 64") == f'<abbr title="{TERMS["ms"]}">ms, batch 64</abbr>'
    assert glossary.heading("not shown") == f'<abbr title="{TERMS["not shown"]}">not shown</abbr>'
    assert glossary.heading("<stage>") == "&lt;stage&gt;"
    assert [name for _, name, _ in glossary.used()] == ["ms", "not shown"]


def test_explanations_are_sentences_that_fit_beside_a_pointer_and_have_places_of_their_own() -> None:
    assert len({anchor(name) for name in TERMS}) == len(TERMS)
    for name, text in TERMS.items():
        assert text[0].isupper() and text.endswith("."), name
        assert len(text) <= 200, name
        assert '"' not in text, name
