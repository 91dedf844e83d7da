"""Writes references.json beside it: what each sampling setting leaves of recorded logits.

The processors of transformers answer where it has one. It has none for frequency and presence penalties, DRY,
top-n-sigma, XTC and mirostat 2: those are computed here, by plain numpy, from their definitions.

    pip install torch transformers numpy
    python record.py
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

VOCABULARY = 40
random = np.random.default_rng(13)
prompt = [3, 8, 1, 9, 3, 8, 1, 5, 2, 3, 8]
generated = [1, 9, 3, 8]
# Quarters: exact as text and in binary16; no two are equal.
logits = (random.permutation(VOCABULARY) - 16).astype(np.float32) * 0.25
logits += np.linspace(0, 0.125, VOCABULARY, dtype=np.float32).astype(np.float16).astype(np.float32)


def theirs(processor):
    ids = torch.tensor([prompt + generated])
    return processor(ids, torch.tensor(logits)[None].clone())[0].numpy()


def softmax(values):
    weights = np.exp(values.astype(np.float64) - values.max())
    return weights / weights.sum()


def frequency_presence(frequency, presence):
    out = logits.copy()
    for token in set(generated):
        out[token] -= np.float32(generated.count(token) * frequency + presence)
    return out


def dry(multiplier, base, allowed_length, breakers):
    tokens, out, longest = prompt + generated, logits.copy(), {}
    for end in range(len(tokens) - 1):
        length = 0
        while (
            length <= end
            and tokens[end - length] == tokens[-1 - length]
            and tokens[end - length] not in breakers
        ):
            length += 1
        follows = tokens[end + 1]
        if follows not in breakers:
            longest[follows] = max(length, longest.get(follows, 0))
    for token, length in longest.items():
        if length >= allowed_length:
            out[token] -= np.float32(multiplier * base ** (length - allowed_length))
    return out


def only(kept):
    out = np.full(VOCABULARY, -np.inf, np.float32)
    out[kept] = logits[kept]
    return out


def top_n_sigma(sigmas):
    values = logits.astype(np.float64)
    return only(np.flatnonzero(values >= values.max() - sigmas * values.std()))


def xtc(threshold):
    shares = softmax(logits)
    top = [token for token in np.argsort(-shares) if shares[token] >= threshold]
    return only([token for token in range(VOCABULARY) if token not in top[:-1]])


def mirostat(tau, eta, places):
    """What is left when the token at each of these places of what is left is chosen, best first."""
    shares, limit, chosen, left = softmax(logits), 2 * tau, [], []
    for place in places:
        kept = np.flatnonzero((-np.log2(shares) <= limit) | (logits == logits.max()))
        order = kept[np.argsort(-logits[kept])]
        token = order[min(place, len(order) - 1)]
        chosen.append(int(token))
        left.append([int(one) for one in kept])
        limit -= eta * (-math.log2(shares[token] / shares[kept].sum()) - tau)
    return {"chosen": chosen, "left": left}


cases = {
    "temperature": theirs(TemperatureLogitsWarper(0.7)),
    "top_k": theirs(TopKLogitsWarper(7)),
    "top_p": theirs(TopPLogitsWarper(0.83)),
    "min_p": theirs(MinPLogitsWarper(0.06)),
    "typical_p": theirs(TypicalLogitsWarper(0.6)),
    "repetition_penalty": theirs(RepetitionPenaltyLogitsProcessor(1.3)),
    "no_repeat_ngram": theirs(NoRepeatNGramLogitsProcessor(3)),
    "no_repeat_unigram": theirs(NoRepeatNGramLogitsProcessor(1)),
    "logit_bias": theirs(SequenceBiasLogitsProcessor([[[4], 2.5], [[17], -3.0]])),
    "banned": theirs(NoBadWordsLogitsProcessor([[6], [30]])),
    "frequency_presence": frequency_presence(0.5, 0.75),
    "dry": dry(0.8, 1.75, 2, []),
    "dry_breaker": dry(0.8, 1.75, 1, [9]),
    "top_n_sigma": top_n_sigma(1.1),
    "xtc": xtc(0.07),
}
log_probs = np.log(softmax(logits))
references = {
    "prompt": prompt,
    "generated": generated,
    "logits": [float(logit) for logit in logits],
    # null: removed.
    "left": {
        name: [None if math.isinf(logit) else float(logit) for logit in out]
        for name, out in cases.items()
    },
    "mirostat": mirostat(1.5, 1.0, [0, 5, 0, 0, 9, 1, 0, 9]),
    "log_probs": [float(value) for value in torch.log_softmax(torch.tensor(logits).double(), 0)],
}
assert np.allclose(references["log_probs"], log_probs)
Path(__file__).with_name("references.json").write_text(json.dumps(references, indent=None) + "\n")
