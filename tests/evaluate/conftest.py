import pytest

from evaluate_oracles import colour_samples, source, tiny_model
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.job import Job, Options
from unicl.evaluate.pictures import distinct_images, embed_pictures
from unicl.evaluate.run import evaluate
from unicl.space import Sample


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """A source of twenty labelled and captioned pictures, and one that is no picture."""
    root = tmp_path_factory.mktemp("colours")
    broken = root / "broken.png"
    broken.write_bytes(b"no picture")
    bad = Sample(id="broken.png", image=broken, captions=("a lost picture",), labels=("red",), namespace="a")
    return source([*colour_samples(root), bad], root=root)


@pytest.fixture(scope="session")
def job(model, colours):
    pictures = embed_pictures(model, distinct_images([colours]))
    return Job(model=model, pictures=pictures, training=None, options=Options(bootstrap=Bootstrap(resamples=100)))


@pytest.fixture(scope="session")
def report(model, colours):
    return evaluate(model, [colours], title="runs/a | <b>", bootstrap=Bootstrap(resamples=100))
