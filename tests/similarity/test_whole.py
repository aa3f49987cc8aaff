import torch

from unicl.similarity.whole import cosine
from unicl.space import Embedding


def embedding(vectors):
    return Embedding(whole=vectors, features=vectors)


def test_cosines_stay_in_float32_under_autocast():
    vectors = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = cosine(embedding(vectors.bfloat16()), embedding(vectors))
        exact, turned = cosine(embedding(vectors), embedding(vectors))
    assert inside.dtype == exact.dtype == torch.float32
    assert torch.equal(exact, vectors @ vectors.T)
    assert turned is exact
