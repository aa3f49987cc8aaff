"""The papers' formulas as plain loops over pairs, in float64: the only second implementation that is allowed."""

import math


def _log_sum_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def unicl_equation_1(scores, image_labels, text_labels):
    """UniCL, equations 1 to 3: the sum over a batch of both directions."""
    total = 0.0
    rows, columns = len(image_labels), len(text_labels)
    for i in range(rows):
        positives = [k for k in range(columns) if text_labels[k] == image_labels[i]]
        normaliser = _log_sum_exp([scores[i][j] for j in range(columns)])
        total += sum(normaliser - scores[i][k] for k in positives) / len(positives) if positives else 0.0
    for j in range(columns):
        positives = [k for k in range(rows) if image_labels[k] == text_labels[j]]
        normaliser = _log_sum_exp([scores[i][j] for i in range(rows)])
        total += sum(normaliser - scores[k][j] for k in positives) / len(positives) if positives else 0.0
    return total


def unicl_algorithm_1(scores, target):
    """UniCL, algorithm 1: SoftCE of the scores and of their transpose, averaged; rows without a positive left out."""
    return (_soft_cross_entropy(scores, target) + _soft_cross_entropy(_turned(scores), _turned(target))) / 2


def clip(scores):
    """CLIP, figure 3: cross-entropy against the diagonal, both ways, averaged."""
    rows = len(scores)
    image = sum(_log_sum_exp(scores[i]) - scores[i][i] for i in range(rows)) / rows
    turned = _turned(scores)
    text = sum(_log_sum_exp(turned[j]) - turned[j][j] for j in range(rows)) / rows
    return (image + text) / 2


def siglip(scores, target):
    """SigLIP, equation 1: every pair its own logistic loss, averaged over images."""
    total = 0.0
    for row, wanted in zip(scores, target, strict=True):
        for score, yes in zip(row, wanted, strict=True):
            z = 1.0 if yes > 0 else -1.0
            total += math.log1p(math.exp(-z * score)) if z * score > -700 else -z * score
    return total / len(scores)


def supcon(views, labels, temperature):
    """SupCon, equation 2 (outer form): ``views[i][v]`` is a unit vector; each view against all the other views."""
    flat = [
        (vector, labels[i]) for v in range(len(views[0])) for i, vector in ((i, views[i][v]) for i in range(len(views)))
    ]
    total = 0.0
    for a, (anchor, label) in enumerate(flat):
        others = [k for k in range(len(flat)) if k != a]
        scores = {k: sum(x * y for x, y in zip(anchor, flat[k][0])) / temperature for k in others}
        normaliser = _log_sum_exp(list(scores.values()))
        positives = [k for k in others if flat[k][1] == label]
        if positives:
            total += sum(normaliser - scores[k] for k in positives) / len(positives)
    return total / len(flat)


def cross_entropy(logits, labels):
    """The mean of minus the log-probability of each row's class."""
    return sum(_log_sum_exp(row) - row[label] for row, label in zip(logits, labels)) / len(labels)


def typed_rows(scores, image_keys, text_keys, counts):
    """Typed rows and counted texts, by repeating every text: ``image_keys[i]`` maps keys to weights."""
    repeated = [j for j, count in enumerate(counts) for _ in range(count)]
    wide = [[row[j] for j in repeated] for row in scores]
    target = [[keys.get(text_keys[j], 0.0) for j in repeated] for keys in image_keys]
    return unicl_algorithm_1(wide, target)


def _soft_cross_entropy(scores, target):
    losses = []
    for row, wanted in zip(scores, target, strict=True):
        mass = sum(wanted)
        if mass > 0:
            normaliser = _log_sum_exp(row)
            losses.append(sum(t * (normaliser - s) for s, t in zip(row, wanted, strict=True)) / mass)
    return sum(losses) / len(losses) if losses else 0.0


def _turned(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def token_reduction(rows, *, gain, shift, first, second, change, groups, eps=1e-5):
    """Wukong's token reduction of one picture's parts ``rows[p][d]``: K weighted means, and their weights.

    ``gain`` and ``shift`` are the layer norm's; ``first`` and ``change`` are matrices in groups, ``[d][d / groups]``;
    ``second`` is ``[k][d]``.
    """
    width = len(gain)
    inside = width // groups

    def grouped(matrix, vector):
        return [sum(matrix[d][e] * vector[d // inside * inside + e] for e in range(inside)) for d in range(width)]

    maps = []
    for row in rows:
        mean = sum(row) / width
        spread = math.sqrt(sum((x - mean) ** 2 for x in row) / width + eps)
        normed = [(x - mean) / spread * g + s for x, g, s in zip(row, gain, shift, strict=True)]
        turned = grouped(first, normed)
        maps.append([sum(w * x for w, x in zip(weights, turned, strict=True)) for weights in second])
    weights = []
    for k in range(len(second)):
        total = _log_sum_exp([place[k] for place in maps])
        weights.append([math.exp(place[k] - total) for place in maps])
    changed = [grouped(change, row) for row in rows]
    means = [[sum(w * row[d] for w, row in zip(each, changed, strict=True)) for d in range(width)] for each in weights]
    return means, weights


def gloria_words(states, entries):
    """GLoRIA's words of one text: token states ``[l][f]`` added up over ``##`` pieces, [CLS] first, [SEP] left out.

    Also the direction of its sentence: the sum of all words and of [SEP].
    """
    words, sentence = [], [0.0] * len(states[0])
    for state, entry in zip(states, entries, strict=True):
        sentence = [a + b for a, b in zip(sentence, state, strict=True)]
        if entry == "[SEP]":
            break
        if entry.startswith("##") and words:
            words[-1] = [a + b for a, b in zip(words[-1], state, strict=True)]
        else:
            words.append(list(state))
    return words, sentence


def token_wise(images, texts, *, floor=False):
    """FILIP, equations 4 and 5: images by texts, by what images' parts find, and by what texts' parts find.

    A row is a list of vectors, None where it is padded; with ``floor`` a pad is found as a product of 0.
    """

    def best(part, others):
        products = [sum(x * y for x, y in zip(part, other, strict=True)) for other in others if other is not None]
        if floor and len(products) < len(others):
            products.append(0.0)
        return max(products) if products else 0.0

    def mean(row, others):
        found = [best(part, others) for part in row if part is not None]
        return sum(found) / len(found) if found else 0.0

    by_image = [[mean(image, text) for text in texts] for image in images]
    return by_image, [[mean(text, image) for text in texts] for image in images]


def filip(by_image, by_text, *, log_sum_exp=_log_sum_exp):
    """FILIP, equations 1 to 3: rows of one table against its diagonal, columns of the other against its own."""
    rows, columns = len(by_image), _turned(by_text)
    image = sum(log_sum_exp(by_image[k]) - by_image[k][k] for k in range(rows)) / rows
    text = sum(log_sum_exp(columns[k]) - columns[k][k] for k in range(rows)) / rows
    return (image + text) / 2


def best_share(rows, others, share):
    """FILIP, section 3.1.1: the places of each row's parts whose highest product with any part of any other is high."""
    everything = [other for each in others for other in each if other is not None]
    kept = []
    for row in rows:
        best = {
            place: max(sum(x * y for x, y in zip(part, other, strict=True)) for other in everything)
            for place, part in enumerate(row)
            if part is not None
        }
        number = max(math.ceil(share * len(best)), 1)
        kept.append(sorted(sorted(best, key=lambda place: -best[place])[:number]))
    return kept


def attended_regions(regions, words, *, sharpness=4.0, gain=5.0, over="sum", words_first=True):
    """GLoRIA's local score of one image and one text, without temp3, from all regions and all words (card 5.2)."""
    if not regions or not words:
        return 0.0
    raw = [[sum(x * y for x, y in zip(c, e, strict=True)) for e in words] for c in regions]
    shares = [_shares(row) for row in raw] if words_first else raw
    cosines = []
    for w, word in enumerate(words):
        looks = _shares([sharpness * row[w] for row in shares])
        seen = [sum(a * c[d] for a, c in zip(looks, regions, strict=True)) for d in range(len(word))]
        inner = sum(x * y for x, y in zip(seen, word, strict=True))
        lengths = math.sqrt(sum(x * x for x in seen)) * math.sqrt(sum(x * x for x in word))
        cosines.append(inner / max(lengths, 1e-8))
    if over == "max":
        return gain * max(cosines)
    each = [math.exp(gain * cosine) for cosine in cosines]
    return math.log(sum(each) / (len(each) if over == "mean" else 1))


def gloria(local, whole, *, temp3=10.0):
    """GLoRIA's loss: both directions' cross-entropies, added up, of local scores and of cosines of wholes."""
    total = 0.0
    for table in (local, whole):
        scores = [[temp3 * score for score in row] for row in table]
        total += cross_entropy(scores, range(len(scores))) + cross_entropy(_turned(scores), range(len(scores)))
    return total


def _shares(values):
    normaliser = _log_sum_exp(values)
    return [math.exp(value - normaliser) for value in values]
