"""The evaluation's numbers as plain loops over samples, classes and queries, and small real things to evaluate."""

import math
from fractions import Fraction

import torch
from PIL import Image
from torch.nn import functional as F

from unicl.data.sources import Source
from unicl.data.text import train_tokenizer
from unicl.model import ModelSettings, TwoTowers, ZeroShotSettings
from unicl.objective.terms import ClassifySettings, ClassName, ContrastSettings
from unicl.space import Sample
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "grey": (128, 128, 128)}


def units(rows, width, *, seed):
    """Random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def exact_cosine(left, right):
    """The inner product of the vectors' nearest multiples of 2**-25, as a fraction."""
    steps = [(round(float(a) * 2**25), round(float(b) * 2**25)) for a, b in zip(left, right, strict=True)]
    return Fraction(sum(a * b for a, b in steps), 4**25)


def all_cosines(left, right):
    return [[exact_cosine(a, b) for b in right] for a in left]


def outcome(scores, own):
    """(predicted, nearest own class, rank) of one sample: classes in descending order, equal ones as they stand."""
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    place = next(k for k, c in enumerate(order) if c in own)
    return order[0], order[place], place + 1


def class_accuracy(predicted, truth, label):
    """The share of the samples of a class whose prediction is one of their classes; None without samples."""
    of_class = [p in own for p, own in zip(predicted, truth, strict=True) if label in own]
    return sum(of_class) / len(of_class) if of_class else None


def pessimistic_rank(scores, right):
    """1 + the wrong answers that score at least as much as the best right one; 0 without a right one."""
    if not right:
        return 0
    best = max(scores[k] for k in right)
    return 1 + sum(k not in right and score >= best for k, score in enumerate(scores))


def median(values):
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def neighbours_of(query, bank, k):
    scores = [float((torch.round(query.double() * 2**20) * torch.round(row.double() * 2**20)).sum()) for row in bank]
    return sorted(range(len(bank)), key=lambda m: (-scores[m], m))[:k]


def elected(neighbours, truth):
    """The class with most votes; of several, that of the nearest neighbour, and then the first."""
    votes = {}
    for place, row in enumerate(neighbours):
        for label in truth[row]:
            count, first = votes.get(label, (0, place))
            votes[label] = (count + 1, first)
    return min(votes, key=lambda label: (-votes[label][0], votes[label][1], label))


def quantile(values, share):
    """Linear interpolation between the two nearest of the sorted values."""
    ordered = sorted(v for v in values if not math.isnan(v))
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def picture(path, *, colour, seed, size=40):
    """A PNG of one colour with noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-25, 26, (size, size, 3), generator=generator)
    pixels = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def colour_samples(folder, *, each=5, captions=True, start=0):
    """Noisy pictures of four colours with a label and two captions, one of them shared by the class."""
    samples = []
    for place, (name, colour) in enumerate(COLOURS.items()):
        for number in range(each):
            seed = start + 100 * place + number
            image = picture(folder / name / f"{seed}.png", colour=colour, seed=seed)
            words = (f"a {name} picture", f"number {seed} is {name}") if captions else ()
            samples.append(Sample(id=f"{name}/{seed}.png", image=image, captions=words, labels=(name,), namespace="a"))
    return samples


def source(samples, *, root, name="colours"):
    """The samples as a source."""
    return Source(name=name, path=root, format="class folder", samples=tuple(samples), guessed={}, root=root)


def tiny_model(*, recipe="itl", texts=True, classes=(), seed=0):
    """A real model with random weights: two towers in a nested space, or an image tower with a classifier."""
    torch.manual_seed(seed)
    image = ImageSettings(name="test_resnet", size=32)
    if not texts:
        terms = (ClassifySettings(),) if classes else (ContrastSettings(),)
        named = tuple(ClassName(label=label, key=k + 1) for k, label in enumerate(classes))
        settings = ModelSettings(image=image, text=None, width=16, terms=terms, classes=named, recipe=recipe)
        return TwoTowers(settings, tokenizer=None).eval()
    terms = (ContrastSettings(texts="captions"), ContrastSettings(name="classes", texts="classes", dims=8))
    text = TextSettings(layers=1, dim=16, heads=2, context=16, vocab=300)
    words = [f"a photo of a {name} picture number is 0123456789" for name in COLOURS]
    tokenizer = train_tokenizer(words, vocab_size=300, context=16)
    settings = ModelSettings(image=image, text=text, width=16, terms=terms, recipe=recipe)
    return TwoTowers(settings, tokenizer=tokenizer).eval()


def parts_model(ensemble="similarities", *, standardise=False, terms=None, seed=0):
    """A real model with random weights that compares patches with words, or as ``terms`` say."""
    torch.manual_seed(seed)
    words = [f"a photo of a {name} picture number is 0123456789" for name in COLOURS]
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32, pool="parts", parts=ImageParts()),
        text=TextSettings(layers=1, dim=16, heads=2, context=16, vocab=300, pool="parts", parts=TextParts()),
        width=16,
        terms=terms or (ContrastSettings(similarity="tokenwise"),),
        zero_shot=ZeroShotSettings(ensemble=ensemble, standardise=standardise),
        recipe="filip",
    )
    return TwoTowers(settings, tokenizer=train_tokenizer(words, vocab_size=300, context=16)).eval()


def late_interaction(image_parts, text_parts):
    """FILIP, equations 4 and 5, of one image and one text without padding: the mean of each side's best products."""
    products = [[sum(float(a) * float(b) for a, b in zip(p, q, strict=True)) for q in text_parts] for p in image_parts]
    of_image = sum(max(row) for row in products) / len(products)
    of_text = sum(max(column) for column in zip(*products, strict=True)) / len(products[0])
    return of_image, of_text


def real_parts(parts, row):
    """The parts of one row that are real."""
    return parts.values[row][parts.mask[row]].double().tolist()


def mean_ranks(values):
    """The rank of each value from 1, equal ones at the mean of their places."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def rank_correlation(left, right):
    """Spearman's: Pearson's of the mean ranks; 0 where one side is all equal."""
    a, b = mean_ranks(left), mean_ranks(right)
    middle_a, middle_b = sum(a) / len(a), sum(b) / len(b)
    shared = sum((x - middle_a) * (y - middle_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - middle_a) ** 2 for x in a) * sum((y - middle_b) ** 2 for y in b)
    return shared / math.sqrt(spread) if spread else 0.0


def rank_in_gallery(query, gallery, right, left_out):
    """`pessimistic_rank` by exact cosines, in a gallery that lacks one place."""
    kept = [k for k in range(len(gallery)) if k != left_out]
    scores = [exact_cosine(query, gallery[k]) for k in kept]
    return pessimistic_rank(scores, {kept.index(k) for k in right if k != left_out})


def unit(vector):
    length = math.sqrt(sum(float(v) ** 2 for v in vector))
    return [float(v) / length for v in vector]


def bleu(captions, references, *, order):
    """BLEU up to runs of ``order`` words, of all captions together (Papineni et al. 2002, sections 2.1 and 2.3)."""
    product, said, nearest = 1.0, 0, 0
    for caption, several in zip(captions, references, strict=True):
        said += len(caption)
        nearest += min((abs(len(text) - len(caption)), len(text)) for text in several)[1]
    for length in range(1, order + 1):
        right = every = 0
        for caption, several in zip(captions, references, strict=True):
            known = [_runs(text, length) for text in several]
            for run, count in _runs(caption, length).items():
                right += min(count, max(text.get(run, 0) for text in known))
                every += count
        product *= right / every
    return product ** (1 / order) * min(1.0, math.exp(1 - nearest / said))


def cider_d(captions, references):
    """CIDEr-D, from 0 to 10 (Vedantam et al. 2015, sections 4 and 5): the mean over captions."""
    found = []
    for caption, several in zip(captions, references, strict=True):
        of_texts = []
        for text in several:
            likeness = 0.0
            for length in range(1, 5):
                said, known = (_weighed(each, length, references) for each in (caption, text))
                shared = sum(min(value, known.get(run, 0.0)) * known.get(run, 0.0) for run, value in said.items())
                norm = math.sqrt(sum(v * v for v in said.values()) * sum(v * v for v in known.values()))
                likeness += shared / (norm or 1.0) / 4
            of_texts.append(likeness * math.exp(-((len(caption) - len(text)) ** 2) / (2 * 6**2)))
        found.append(10 * sum(of_texts) / len(of_texts))
    return sum(found) / len(found)


def _runs(words, length):
    counts = {}
    for start in range(len(words) - length + 1):
        run = tuple(words[start : start + length])
        counts[run] = counts.get(run, 0) + 1
    return counts


def _weighed(words, length, references):
    """Runs of words by how few pictures have them."""
    weighed = {}
    for run, count in _runs(words, length).items():
        pictures = sum(any(run in _runs(text, length) for text in several) for several in references)
        weighed[run] = count * math.log(len(references) / max(1, pictures))
    return weighed
