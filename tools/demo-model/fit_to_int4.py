"""Teaches folktale-3m to bear int4 weights, after train.py.

A small model trained for long has no weights to spare: rounding them to int4 cost it 7 % of perplexity. Here it is
trained a little longer while it computes with rounded weights (quantization-aware training with a straight-through
estimator; Bengio et al. 2013), to predict what it predicted before. In every step it also computes with the weights
as they are, so that they stay as good as they were. Minutes on a CPU.

Needs what train.py needs, but no GPU.
Usage: python fit_to_int4.py TRAIN.txt HELD-OUT.txt EXPORT_DIR CHECKPOINT.safetensors OUT_DIR [--steps 300]
"""

import argparse
import copy
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.func import functional_call
from tokenizers import Tokenizer

import train

BLOCK = 32


@torch.no_grad()
def rounded(weight):
    """Round to nearest in blocks of 32 columns, with the better of two f16 scales, as tools/convert/src/quantize/rtn.rs."""
    blocks = weight.reshape(-1, BLOCK)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    best, best_error = None, None
    for scale in (extreme.abs() / 7, extreme / -8):
        scale = scale.half().float()
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        value = (blocks * inverse).round().clamp(-8, 7) * scale
        error = (value - blocks).square().sum(1, keepdim=True)
        if best is None:
            best, best_error = value, error
        else:
            best = torch.where(error < best_error, value, best)
    return best.reshape(weight.shape)


def with_rounded_weights(model):
    """Parameters by name; the gradient of a rounded weight goes to the weight it was rounded from."""
    return {
        name: value + (rounded(value) - value).detach() if value.dim() > 1 else value
        for name, value in model.named_parameters()
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "held_out", "export", "checkpoint", "out"):
        arguments.add_argument(name, type=pathlib.Path)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--rate", type=float, default=3e-4)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)

    tokenizer = Tokenizer.from_file(str(options.export / "tokenizer.json"))
    tokens, held_out = (train.encode(tokenizer, path) for path in (options.train, options.held_out))
    model = train.Decoder(train.STUDENT).to(train.DEVICE)
    weights = load_file(options.checkpoint)
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    before = copy.deepcopy(model).requires_grad_(False)

    def report(step):
        losses = []
        for parameters in (dict(model.named_parameters()), with_rounded_weights(model)):
            fixed = copy.deepcopy(model)
            fixed.load_state_dict({name: value.detach() for name, value in parameters.items()})
            losses.append(train.held_out_loss([fixed], held_out, precise=True))
        print(f"{step:5} perplexity {math.exp(losses[0]):.3f}, rounded {math.exp(losses[1]):.3f}, "
              f"{time.monotonic() - start:.0f} s", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.0, betas=(0.9, 0.98))
    offsets = torch.arange(train.CONTEXT, device=train.DEVICE)
    start = time.monotonic()
    for step in range(options.steps):
        if step % 100 == 0:
            report(step)
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 20)
            group["lr"] = options.rate * warm * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        starts = torch.from_numpy(random.integers(0, len(tokens) - train.CONTEXT - 1, options.batch))
        at = starts.to(train.DEVICE)[:, None] + offsets
        inputs, targets = tokens[at], tokens[at + 1]
        with torch.no_grad():
            taught = before(inputs).softmax(-1)
        for parameters in (dict(model.named_parameters()), with_rounded_weights(model)):
            log_probabilities = functional_call(model, parameters, (inputs,)).log_softmax(-1)
            from_itself = -(taught * log_probabilities).sum(-1).mean()
            from_text = F.nll_loss(log_probabilities.flatten(0, 1), targets.flatten())
            (0.9 * from_itself + 0.1 * from_text).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    report(options.steps)

    train.save(model, tokenizer, held_out, options.export, options.out)


if __name__ == "__main__":
    main()
