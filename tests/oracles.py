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
