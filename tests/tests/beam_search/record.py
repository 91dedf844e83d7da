"""Writes references.json beside it: the hypotheses that transformers' beam search finds with the demo model.

4.49 is the last version whose one implementation has groups; the weights are those of the demo model's export.

    pip install torch transformers==4.49.0 numpy onnx
    python record.py
"""

import json
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

here = Path(__file__).parent
export = here.parents[2] / "tools/demo-model/onnx"
torch.set_num_threads(1)

graph = onnx.load(export / "model.onnx").graph
tensors = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
named = {name: t for name, t in tensors.items() if name.startswith("model.")}
# Products have no names of their own; they lie in the order of the layers.
products = [t.T.contiguous() for name, t in tensors.items() if name.startswith("onnx::MatMul")]
parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
config = AutoConfig.from_pretrained(export)
for layer in range(config.num_hidden_layers):
    for part in parts:
        named[f"model.layers.{layer}.{part}.weight"] = products.pop(0)
named["lm_head.weight"] = products.pop(0)
config.tie_word_embeddings = False
model = LlamaForCausalLM(config)
print(model.load_state_dict(named, strict=True))
model.eval()

tokenizer = AutoTokenizer.from_pretrained(export)
prompt = tokenizer("Once upon a time there was a king").input_ids
full_stop = tokenizer(" He went home.").input_ids[-1]
comma = tokenizer(" and,").input_ids[-1]
assert tokenizer.decode([full_stop, comma]) == ".,"

PLAIN = dict(
    width=4, groups=1, diversity_penalty=0.0, length_penalty=1.0, early_stopping="false", max_new_tokens=12,
    stop_tokens=[], banned_tokens=[], no_repeat_ngram=None, repetition_penalty=None,
)
ends = [full_stop, comma]
cases = [
    dict(),
    dict(width=1),
    dict(width=7, max_new_tokens=5),
    dict(max_new_tokens=1),
    dict(stop_tokens=ends),
    dict(stop_tokens=ends, early_stopping="true"),
    dict(stop_tokens=ends, early_stopping="never"),
    dict(stop_tokens=ends, length_penalty=0.0),
    dict(stop_tokens=ends, length_penalty=2.0, early_stopping="never"),
    dict(stop_tokens=ends, length_penalty=-1.0, early_stopping="never"),
    dict(stop_tokens=ends, length_penalty=0.5, width=6, max_new_tokens=20),
    dict(stop_tokens=ends, width=2, max_new_tokens=24),
    dict(stop_tokens=ends, width=2, max_new_tokens=24, early_stopping="never"),
    dict(stop_tokens=ends, width=3, max_new_tokens=24, length_penalty=1.5),
    dict(stop_tokens=ends, width=3, max_new_tokens=24, length_penalty=1.5, early_stopping="never"),
    dict(width=6, groups=3, diversity_penalty=0.7),
    dict(width=6, groups=2, diversity_penalty=1.5, stop_tokens=ends, max_new_tokens=16),
    dict(width=4, groups=4, diversity_penalty=0.3, stop_tokens=ends, early_stopping="true"),
    dict(banned_tokens=ends, no_repeat_ngram=2, max_new_tokens=16),
    dict(repetition_penalty=1.3, stop_tokens=ends, max_new_tokens=16),
]


def hypotheses(case):
    c = {**PLAIN, **case}
    ends = [config.eos_token_id] + c["stop_tokens"]
    # The token of a done group; one that no beam chooses.
    pad = config.vocab_size - 1
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=c["width"], num_return_sequences=c["width"], num_beam_groups=c["groups"],
            diversity_penalty=c["diversity_penalty"], length_penalty=c["length_penalty"],
            early_stopping={"false": False, "true": True, "never": "never"}[c["early_stopping"]],
            max_new_tokens=c["max_new_tokens"], eos_token_id=ends, pad_token_id=pad,
            bad_words_ids=[[t] for t in c["banned_tokens"]] or None,
            no_repeat_ngram_size=c["no_repeat_ngram"] or 0, repetition_penalty=c["repetition_penalty"] or 1.0,
            output_scores=True, return_dict_in_generate=True,
        )
    found = []
    scores = out.get("sequences_scores")
    for row, sequence in enumerate(out.sequences.tolist()):
        tokens = [t for t in sequence[len(prompt):] if t != pad]
        ended = bool(tokens) and tokens[-1] in ends
        found.append(dict(
            tokens=tokens[:-1] if ended else tokens, ended=ended,
            score=None if scores is None else round(float(scores[row]), 6),
        ))
    return {**c, "hypotheses": found}


references = dict(prompt=prompt, cases=[hypotheses(case) for case in cases])
lines = ",\n".join("  " + json.dumps(case) for case in references["cases"])
text = f'{{"prompt": {json.dumps(prompt)}, "cases": [\n{lines}\n]}}\n'
(here / "references.json").write_text(text)
