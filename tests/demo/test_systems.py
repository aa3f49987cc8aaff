from dataclasses import replace

from unicl.demo.systems import systems


def test_the_systems_differ_in_keys_and_terms_alone():
    made = systems(steps=7)
    assert list(made) == ["clip", "unicl", "one space", "itl"]
    first = made["clip"]
    for recipe in made.values():
        alike = replace(recipe, name="x", terms=(), data=replace(recipe.data, keys="sample"))
        assert alike == replace(first, name="x", terms=())
        assert {term.scale for term in recipe.terms} == {first.terms[0].scale}
    assert [recipe.data.keys for recipe in made.values()] == ["sample", "label", "typed", "typed"]
