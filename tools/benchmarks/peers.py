"""Compares Niwaki with llama.cpp and onnxruntime-genai on the same shape, the same machine, in the same run.

    python3 tools/benchmarks/peers.py SHAPE [--weights int4,int8] [--threads 1,2] [--tests "prefill 128,.."]
                                      [--repeats 5] [--json FILE]

SHAPE is a SHAPE.json or the name of one in tools/benchmarks/shapes. Weights are random: speed does not depend on
them. The first run installs the peers under target/benchmarks/venv, compiles llama.cpp for this CPU and builds Niwaki
(prepare.py names the variables that skip this). Linux only; needs nothing but Python.

Engines take turns, every sample in a process of its own (A B C A B C ..), and medians are compared. llama.cpp runs
with and without flash attention and the faster counts. Beside tokens per second there are tokens per CPU-second,
which tell more on a busy machine.
"""

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict

import report
from measure import anonymous_peak_bytes, first_token, settle, timed
from prepare import HERE, Models, llama_cpp_program, niwaki_programs, python, run, say
from shape import find

# What is timed: tokens of prompt, tokens decoded after it.
TESTS = {"prefill 128": (128, 0), "prefill 512": (512, 0), "decode at 10": (10, 64), "decode at 2000": (2000, 32)}
NIWAKI, LLAMA, GENAI = "niwaki", "llama.cpp", "onnxruntime-genai"
# llama.cpp counts with the faster of its two ways to compute attention.
VARIANTS = {f"{LLAMA} flash": LLAMA, f"{LLAMA} plain": LLAMA}


class Engine:
    """How an engine is started on one model."""

    def __init__(self, name, command, extra=()):
        self.name, self.command, self.extra = name, command, extra


def engines(models, weights, programs):
    """All engines that have such weights."""
    decode, llama_cpp = programs
    gguf = models.gguf(weights)
    made = [
        Engine(NIWAKI, [decode, models.bundle(weights)]),
        Engine(f"{LLAMA} flash", [llama_cpp, gguf], [1]),
        Engine(f"{LLAMA} plain", [llama_cpp, gguf], [0]),
    ]
    if weights == "int4":
        made.append(Engine(GENAI, [python(), HERE / "engines" / "genai.py", models.genai()]))
    return made


def measure(configurations, threads, tests, repeats):
    """Samples by (weights, threads, what, engine)."""
    samples = defaultdict(list)
    for model in {engine.command[-1] for running in configurations.values() for engine in running}:
        settle(model)
    for repeat in range(repeats):
        for weights, running in configurations.items():
            for count in threads:
                say(f"repeat {repeat + 1} of {repeats}: {weights}, {count} threads")
                for engine in running:
                    cold = engine.command, count, engine.extra
                    # Short, so one sample tells little. The first brings program and libraries into memory.
                    starts = [first_token(*cold) for _ in range(6)][1:]
                    for unit, seconds in zip(("wall", "cpu"), zip(*starts)):
                        samples[weights, count, f"first token {unit}", engine.name] += seconds
                    samples[weights, count, "memory", engine.name].append(anonymous_peak_bytes(*cold))
                for test in tests:
                    prompt, new = TESTS[test]
                    for engine in running:
                        times = timed(engine.command, prompt, new, count, engine.extra)
                        part, tokens = ("new", new) if new else ("prompt", prompt)
                        for clock, unit in (("s", "wall"), ("cpu_s", "cpu")):
                            speed = tokens / times[f"{part}_{clock}"]
                            samples[weights, count, f"{test} {unit}", engine.name].append(speed)
    return samples


def medians(samples):
    """Medians, with llama.cpp's variants replaced by the better of them."""
    result = {}
    for (weights, threads, what, engine), values in samples.items():
        value, key = statistics.median(values), (weights, threads, what, VARIANTS.get(engine, engine))
        less_is_better = what.startswith(("first token", "memory"))
        better = min if less_is_better else max
        result[key] = better(value, result.get(key, value))
    return result


def own_figures(niwaki, bundle, threads):
    """What `niwaki bench` says about the plan and the share of the memory bandwidth, by number of threads."""
    listed = ",".join(map(str, threads))
    arguments = ["-p", "512", "-n", "64", "-r", "3", "-t", listed, "--json"]
    description = json.loads(run(niwaki, "bench", bundle, *arguments))
    plan = json.loads(run(niwaki, "bench", bundle, "-p", "512", "-n", "0", "-r", "1", "-t", listed, "--json"))
    figures = {}
    for engine, planned in zip(description["engines"], plan["engines"]):
        decode = next(test for test in engine["tests"] if test["test"] == "decode")
        figures[engine["threads"]] = {
            "bandwidth_share": decode["bandwidth_share"],
            "planned_anonymous_bytes": planned["planned_anonymous_bytes"],
        }
    return figures


def main():
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("--weights", type=lambda text: text.split(","), default=["int4", "int8"])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--tests", type=lambda text: text.split(","), default=list(TESTS), help=", ".join(TESTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write all samples and medians here")
    arguments = parser.parse_args()

    niwaki, decode = niwaki_programs()
    models = Models(find(arguments.shape), niwaki)
    programs = decode, llama_cpp_program()
    configurations = {weights: engines(models, weights, programs) for weights in arguments.weights}
    models.forget_floats()
    samples = measure(configurations, arguments.threads, arguments.tests, arguments.repeats)
    own = {weights: own_figures(niwaki, models.bundle(weights), arguments.threads) for weights in arguments.weights}

    figures = report.Figures(medians(samples), own, arguments.weights, arguments.threads)
    print(f"{models.shape.name}, medians of {arguments.repeats} ({5 * arguments.repeats} starts), load average {os.getloadavg()[0]:.1f}")
    print(f"llama.cpp: {run(programs[1], '--system').strip()}\n")
    print(report.speeds(figures))
    print(report.goals(figures))
    if arguments.json:
        keys = ("weights", "threads", "what", "engine")
        rows = [{**dict(zip(keys, key)), "samples": values} for key, values in samples.items()]
        text = json.dumps({"shape": models.shape.name, "samples": rows, "own": own}, indent=1)
        with open(arguments.json, "w") as file:
            file.write(text)


if __name__ == "__main__":
    sys.exit(main())
