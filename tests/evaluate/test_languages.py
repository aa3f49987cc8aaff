from dataclasses import replace

import pytest

from evaluate_oracles import all_cosines, colour_samples, pessimistic_rank, source, tiny_model
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.captions import run_retrieval
from unicl.evaluate.languages import cannot_compare_languages, read_languages, run_languages
from unicl.evaluate.run import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures, captioned in English and German by rows, in columns, and all of it beside other parts."""
    root = tmp_path_factory.mktemp("languages")
    names = [s.id for s in colour_samples(root, each=3)]
    rows = ["file,title,language,split"]
    for k, name in enumerate(names):
        rows += [f"{name},picture {k},en,test", f"{name},another {k},en,test", f"{name},bild {k % 5},de,test"]
    rows += [f"{names[0]},never read,en,train"]
    (root / "rows.csv").write_text("\n".join(rows) + "\n")
    columns = [f"{name},picture {k},{f'bild {k}' if k < 8 else ''}" for k, name in enumerate(names)]
    (root / "columns.csv").write_text("\n".join(["file,en,de", *columns]) + "\n")
    return root


def run(model, folder, name, columns, **options):
    typed = str(folder / name)
    data = [load(typed)]
    return evaluate(
        model,
        data,
        tasks=["languages"],
        languages=read_languages([typed], columns),
        bootstrap=Bootstrap(resamples=50),
        **options,
    )


def test_a_column_of_languages_and_a_column_for_each_are_read(folder):
    rows = read_languages([f"{folder}/rows.csv?where=split:test"], "language")
    assert list(rows) == ["en", "de"]
    assert [len(samples) for samples in rows.values()] == [12, 12]
    assert rows["en"][1].captions == ("picture 1", "another 1")
    assert rows["de"][1].captions == ("bild 1",)
    columns = read_languages([f"{folder}/columns.csv"], "en,de")
    assert [len([s for s in samples if s.captions]) for samples in columns.values()] == [12, 8]
    with pytest.raises(UserError, match=r"no column 'lang' .* it has 'file', 'title', 'language'"):
        read_languages([f"{folder}/rows.csv"], "lang")
    with pytest.raises(UserError, match=r"no column 'fr'.* it has 'file', 'en', 'de'"):
        read_languages([f"{folder}/columns.csv"], "en,fr")


def test_recalls_of_a_language_are_those_of_its_own_images_and_texts(model, folder):
    result = run(model, folder, "columns.csv", "en,de").results[0]
    found = {score.key: score for score in result.scores}
    for language, size in (("en", 12), ("de", 8)):
        samples = read_languages([f"{folder}/columns.csv"], language + ",en")[language][:size]
        images = model.embed_image([s.image for s in samples])
        scores = all_cosines(images, model.embed_text([s.captions[0] for s in samples]))
        ranks = [
            [pessimistic_rank(row, {k}) for k, row in enumerate(scores)],
            [pessimistic_rank([row[k] for row in scores], {k}) for k in range(size)],
        ]
        recalls = [sum(rank <= k for rank in way) / size for way in ranks for k in (1, 5, 10)]
        keys = [f"languages/{language}/{way}/r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
        assert [found[key].value for key in keys] == pytest.approx(recalls)
        assert found[f"languages/{language}/mean_recall"].value == pytest.approx(sum(recalls) / 6)
        assert found[f"languages/{language}/image_to_text/r1"].n == size
    both = [found[f"languages/{language}/mean_recall"].value for language in ("en", "de")]
    assert found["languages/mean_recall"].value == pytest.approx(sum(both) / 2)
    assert result.facts["de, images and texts"] == "8 and 8"
    assert all(s.low <= s.value + 1e-9 and s.value <= s.high + 1e-9 for s in result.scores)


def test_one_language_for_all_captions_is_retrieval(job):
    languages = {"en": job.pictures.samples}
    found = {s.key: s for s in run_languages(replace(job, options=replace(job.options, languages=languages))).scores}
    for score in run_retrieval(job).scores:
        key = score.key.replace("retrieval/", "languages/en/")
        if key in found:
            assert (found[key].value, found[key].low, found[key].high) == (score.value, score.low, score.high)
    assert found["languages/mean_recall"].value == found["languages/en/mean_recall"].value


def test_equal_captions_of_several_images_are_one_text(model, folder):
    result = run(model, folder, "rows.csv", "language").results[0]
    assert result.facts["de, images and texts"] == "12 and 5"


def test_a_language_without_captions_is_an_error_that_names_it(job):
    silent = tuple(replace(s, captions=()) for s in job.pictures.samples)
    changed = replace(job, options=replace(job.options, languages={"en": job.pictures.samples, "fr": silent}))
    with pytest.raises(UserError, match="the language 'fr' has 0 captions"):
        run_languages(changed)


def test_reasons_why_it_cannot_be_done(job, tmp_path):
    assert "--language" in cannot_compare_languages(job.plan)
    assert "no text tower" in cannot_compare_languages(
        replace(job.plan, model=tiny_model(texts=False, recipe="supcon"))
    )
    pictures = source(colour_samples(tmp_path, each=1), root=tmp_path)
    with pytest.raises(UserError, match="no column of languages was given"):
        evaluate(job.model, [pictures], tasks=["languages"])
