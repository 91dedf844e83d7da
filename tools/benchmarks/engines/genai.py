"""Runs onnxruntime-genai on tokens as the other programs here run their engines: see llama_cpp.c.

    python genai.py EXPORT_FOLDER PROMPT_TOKENS NEW_TOKENS [THREADS [REPEATS]]
"""

import json
import pathlib
import sys
import time

import onnxruntime_genai as og


WARM_UP_TOKENS = 512


def run(model, prompt, new_tokens, first_token=lambda: None):
    """Seconds of wall clock and CPU time: of the prompt and its token, of the new tokens."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + new_tokens + 1)
    generator = og.Generator(model, parameters)
    clocks = [(time.perf_counter(), time.process_time())]
    generator.append_tokens(prompt)
    generator.generate_next_token()
    clocks.append((time.perf_counter(), time.process_time()))
    first_token()
    for _ in range(new_tokens):
        generator.generate_next_token()
    clocks.append((time.perf_counter(), time.process_time()))
    spans = [after - before for earlier, later in zip(clocks, clocks[1:]) for before, after in zip(earlier, later)]
    return dict(zip(("prompt_s", "prompt_cpu_s", "new_s", "new_cpu_s"), spans))


def main():
    folder, prompt_tokens, new_tokens, *rest = sys.argv[1:]
    threads, repeats = [int(number) for number in rest] + [1, 0][len(rest) :]
    config = og.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    description = json.loads((pathlib.Path(folder) / "genai_config.json").read_text())
    vocabulary = description["model"]["vocab_size"]
    prompt = [index * 7919 % vocabulary for index in range(int(prompt_tokens))]
    if not repeats:
        run(model, prompt, int(new_tokens), lambda: print("first token", flush=True))
        return
    run(model, prompt[:WARM_UP_TOKENS], 0)
    for _ in range(repeats):
        print(json.dumps(run(model, prompt, int(new_tokens))), flush=True)


main()
