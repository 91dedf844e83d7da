#!/usr/bin/env python3
"""What each way to quantize a model costs: bundles by `niwaki build`, measured by `niwaki eval` beside the float export.

    python3 tools/benchmarks/quality.py EXPORT_DIR --text HELD_OUT.txt --calibration TEXT.txt [--tokens 16384] [--windows 6]

EXPORT_DIR is a float export with its tokenizer. The two texts must not overlap. Prints a Markdown table; builds `niwaki` first.
Every row says the options of `niwaki build` that made it, so each can be had alone.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CALIBRATED = object()
ROWS = [
    ["--weights", "int8"],
    ["--weights", "int4", "--method", "rtn"],
    ["--weights", "codebook4", "--method", "rtn"],
    ["--weights", "int4", "--method", "search", CALIBRATED],
    ["--weights", "codebook4", "--method", "search", CALIBRATED],
    ["--weights", "int4", "--method", "gptq", CALIBRATED],
    ["--weights", "codebook4", "--method", "gptq"],
    ["--weights", "codebook4", "--method", "gptq", CALIBRATED],
    ["--weights", "codebook4", "--bits", "5.4", CALIBRATED],
    ["--weights", "codebook4", "--bits", "6.2", CALIBRATED],
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("export", type=pathlib.Path)
    arguments.add_argument("--text", type=pathlib.Path, required=True)
    arguments.add_argument("--calibration", type=pathlib.Path, required=True)
    arguments.add_argument("--tokens", type=int, default=16384, help="of the calibration text")
    arguments.add_argument("--windows", type=int, default=6, help="of 512 tokens of the held-out text")
    arguments.add_argument("--rows", type=int, nargs="*", help="only these rows, from 0")
    given = arguments.parse_args()
    subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
    niwaki = ROOT / "target" / "release" / "niwaki"
    calibration = ["--calibration", str(given.calibration), "--calibration-tokens", str(given.tokens)]
    print("| `niwaki build` with | seconds | MB | KL, nats | most likely token | perplexity |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    reference = None
    for index, row in enumerate(ROWS):
        if given.rows and index not in given.rows:
            continue
        options = [word for word in row if word is not CALIBRATED]
        with tempfile.TemporaryDirectory() as folder:
            bundle = pathlib.Path(folder) / "model.niwaki"
            start = time.monotonic()
            build = [niwaki, "build", given.export, "-o", bundle, *options, *(calibration if CALIBRATED in row else [])]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            seconds = time.monotonic() - start
            evaluate = [niwaki, "eval", bundle, "--text", given.text, "--reference", given.export]
            evaluate += ["--max-windows", str(given.windows), "--json"]
            found = json.loads(subprocess.run(evaluate, check=True, capture_output=True).stdout)
            size = bundle.stat().st_size / 1e6
        reference = found["reference"]
        kl = reference["kl_nats"]
        words = " ".join(options) + (" --calibration" if CALIBRATED in row else "")
        print(
            f"| `{words}` | {seconds:.0f} | {size:.1f} | {kl['mean']:.4f} ± {kl['mean_standard_error']:.4f} "
            f"| {100 * reference['top1_agreement']:.1f} % | {found['perplexity']:.2f} |",
            flush=True,
        )
    if reference:
        print(f"\nThe export's perplexity is {reference['perplexity']:.2f}.")


if __name__ == "__main__":
    main()
