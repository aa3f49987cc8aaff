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


def medclip(scores, image_findings, text_findings, *, kind="cosine", sharpness=1.0, log_sum_exp=_log_sum_exp):
    """MedCLIP's loss in plain loops: each row's softmax towards the softmax of what it shares with all columns.

    ``image_findings`` and ``text_findings`` are lists of numbers, ``scores[i][j]`` scaled and of any number type.
    """

    def share(a, b):
        dot = sum(x * y for x, y in zip(a, b))
        if kind == "dot":
            return sharpness * dot
        size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return sharpness * dot / size if size else 0.0

    def way(rows, target):
        total = 0.0
        for i, row in enumerate(rows):
            most = max(target[i])
            masses = [math.exp(s - most) for s in target[i]]
            log_sum = log_sum_exp(list(row))
            total = total + sum(m / sum(masses) * (log_sum - s) for m, s in zip(masses, row))
        return total / len(rows)

    target = [[share(a, b) for b in text_findings] for a in image_findings]
    return (way(scores, target) + way(_turned(scores), _turned(target))) / 2


def precision_at(scores, right, k, *, own=-1):
    """The share of right answers among the first ``k`` of one query, which is not among them; wrong ones come first."""
    order = sorted((place for place in range(len(scores)) if place != own), key=lambda n: (-scores[n], right[n]))
    return sum(bool(right[place]) for place in order[:k]) / k


def asked_findings(scores, values, *, unmentioned="absent"):
    """The mean logistic loss of the findings that are asked for: 1 or more is a yes, -1 or less a no, 0 unmentioned."""
    losses = []
    for row, known in zip(scores, values, strict=True):
        for score, value in zip(row, known, strict=True):
            if value == 0 and unmentioned == "ignored":
                continue
            if value != 0 and abs(value) < 1:
                continue
            losses.append(_log_sum_exp([0.0, -score if value >= 1 else score]))
    return sum(losses) / max(len(losses), 1)


def average_precision(scores, yes):
    """The mean over the yeses of the precision among all that score as high."""
    found = []
    for score, there in zip(scores, yes, strict=True):
        if there:
            above = [other for value, other in zip(scores, yes, strict=True) if value >= score]
            found.append(sum(above) / len(above))
    return sum(found) / len(found)


def area_under_roc(scores, yes):
    """The share of pairs of a yes and a no in which the yes scores higher, a tie for half."""
    pairs = [(a, b) for a, is_yes in zip(scores, yes) if is_yes for b, other in zip(scores, yes) if not other]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def captioning(scores, texts):
    """VirTex's captioning loss: ``scores[m][l][v]`` behind each token of each of M texts, shifted by one.

    The mean over all words of all texts; a text is its tokens without padding.
    """
    losses = [
        _log_sum_exp(row) - row[text[place + 1]]
        for text, rows in zip(texts, scores, strict=True)
        for place, row in enumerate(rows[: len(text) - 1])
    ]
    return sum(losses) / len(losses)


def hidden_words(scores, hidden):
    """The mean of minus the log-probability of each hidden word; ``hidden[m]`` is from places to words."""
    losses = [_log_sum_exp(scores[m][at]) - scores[m][at][word] for m, each in enumerate(hidden) for at, word in each]
    return sum(losses) / len(losses)


def looking_ahead(weight, grads, *, rate, momentum, decay, every, share):
    """LookAhead around SGD with momentum, entry by entry (Zhang et al. 2019, algorithm 1)."""
    fast, slow, speed = list(weight), list(weight), None
    for step, grad in enumerate(grads, start=1):
        pull = [g + decay * w for g, w in zip(grad, fast, strict=True)]
        speed = pull if speed is None else [momentum * v + p for v, p in zip(speed, pull, strict=True)]
        fast = [w - rate * v for w, v in zip(fast, speed, strict=True)]
        if step % every == 0:
            slow = [s + share * (w - s) for s, w in zip(slow, fast, strict=True)]
            fast = list(slow)
    return fast


def normed(row, gain, shift, *, eps=1e-5):
    """A layer norm of one vector."""
    mean = row.sum() / len(row)
    spread = ((row - mean) ** 2).sum() / len(row)
    return (row - mean) / (spread + eps) ** 0.5 * gain + shift


def looked_at(places, tokens, *, norms, matrices):
    """ICMLM_att-fc's attention: how much a caption's real ``tokens`` look at each of ``places``, lists of vectors."""
    (place_gain, place_shift), (token_gain, token_shift) = norms
    a, b = matrices
    queries = [b @ normed(token, token_gain, token_shift) for token in tokens]
    best = []
    for place in places:
        key = a @ normed(place, place_gain, place_shift)
        best.append(max(key @ query / len(key) ** 0.5 for query in queries))
    exps = [(score - max(best)).exp() for score in best]
    return [each / sum(exps) for each in exps]


def encoded(rows, *, heads, inward, outward, norms, wide, narrow):
    """One post-norm layer of a transformer over ``rows``, every one of which sees all others (Vaswani et al. 2017).

    ``inward`` stacks the matrices of queries, keys and values; each of these, ``outward``, ``wide`` and ``narrow`` is a
    weight and a bias, ``norms`` two gains and shifts.
    """
    size = len(rows[0])
    each = size // heads
    mixed = [inward[0] @ row + inward[1] for row in rows]
    found = []
    for row, own in zip(rows, mixed, strict=True):
        seen = []
        for head in range(heads):
            lo, hi = head * each, (head + 1) * each
            exps = [(own[lo:hi] @ other[size + lo : size + hi] / each**0.5).exp() for other in mixed]
            values = [other[2 * size + lo : 2 * size + hi] for other in mixed]
            seen.extend(sum(w * v for w, v in zip(exps, values, strict=True)) / sum(exps))
        joined = sum(column * value for column, value in zip(outward[0].T, seen, strict=True)) + outward[1]
        state = normed(row + joined, *norms[0])
        inner = wide[0] @ state + wide[1]
        inner = inner * 0.5 * (1 + (inner / 2**0.5).erf())
        found.append(normed(state + narrow[0] @ inner + narrow[1], *norms[1]))
    return found


def bag_of_words(scores, words, *, log_sum_exp=_log_sum_exp):
    """Cross-entropy of each row of scores with 1 / K for each of its set of K words (Joulin et al. 2016)."""
    losses = [log_sum_exp(row) - sum(row[w] for w in own) / len(own) for row, own in zip(scores, words, strict=True)]
    return sum(losses) / len(losses)


def words_asked_one_by_one(scores, words):
    """Binary cross-entropy of every entry: yes for the words of a row, no for all others."""
    losses = []
    for row, own in zip(scores, words, strict=True):
        for entry, score in enumerate(row):
            losses.append((1 + (-score if entry in own else score).exp()).log())
    return sum(losses) / len(losses)


def likeliest_text(log_p, *, beams, most, start, end, never, repeats):
    """Beam search, one beginning after the other: the tokens behind the start and the sum of their log p.

    ``log_p(tokens)`` gives a number for every next token. A text that has ended stays; it has at least one word.
    """
    kept = [((start,), 0.0)]
    for number in range(most):
        longer = []
        for text, score in kept:
            if text[-1] == end:
                longer.append((text, score))
                continue
            for token, value in enumerate(log_p(text)):
                again = token == text[-1] and not repeats
                if not (again or token in never or (token == end and number == 0)):
                    longer.append(((*text, token), score + value))
        kept = sorted(longer, key=lambda pair: -pair[1])[:beams]
        if kept[0][0][-1] == end:
            break
    text, score = kept[0]
    return tuple(token for token in text[1:] if token != end), score
