"""Counts the guest instructions of a decoded and of a prefilled token on ARM CPUs that qemu emulates.

    python3 tools/benchmarks/arm_instructions.py SHAPE [--weights int4,codebook4,int8] [--cpus neon,dotprod,i8mm] [--no-peers]
                                                 [--profile release|dist] [--json FILE]

SHAPE is a SHAPE.json or the name of one in tools/benchmarks/shapes. One thread. The counts repeat to the digit, on
any machine and however busy it is; they are not time, but what a small in-order core pays for. Per decoded token:
(33 new tokens - 1 new token) / 32 after a prompt of 8; per prefilled token: (prompt of 129 - prompt of 65) / 64.
Cargo's profile `dist` is the one that apps ship.

The same for llama.cpp: its sources, which llama-cpp-python carries, are cross-compiled for each CPU. Needs Debian 12
with gcc, gcc-aarch64-linux-gnu, g++-aarch64-linux-gnu, qemu-user, cmake, ninja-build, rustc-web, cargo-web and
libstd-rust-web-dev:arm64, and what peers.py needs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prepare import HERE, ROOT, TARGET, Models, benchmark, niwaki_programs, python, run, say
from report import table
from shape import find

# What qemu emulates, and what a compiler may use for it.
CPUS = {
    "neon": ("cortex-a72", "armv8-a"),
    "dotprod": ("cortex-a76", "armv8.2-a+dotprod+fp16"),
    "i8mm": ("max", "armv8.6-a+i8mm+fp16"),
}
# At most this many instructions for one of llama.cpp's.
GOALS = {
    ("int4", "decode"): {"neon": 0.75, "dotprod": 0.75, "i8mm": 0.64},
    ("int8", "decode"): {"neon": 0.8, "dotprod": 0.8, "i8mm": 0.8},
    ("int4", "prefill"): {"neon": 0.75, "dotprod": 0.7, "i8mm": 0.6},
}
# Two runs of prompt and new tokens, and what their difference is divided by.
SLOPES = {"decode": ((8, 1), (8, 33), 32), "prefill": ((65, 0), (129, 0), 64)}
NIWAKI, LLAMA = "niwaki", "llama.cpp"
FOLDER = TARGET / "aarch64"
TRIPLE = "aarch64-unknown-linux-gnu"


def decode_program(profile):
    """The benchmark `decode` for aarch64, by the Debian toolchain that has a standard library for it."""
    environment = {
        **os.environ,
        "RUSTC": "/usr/bin/rustc",
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
        "CC_aarch64_unknown_linux_gnu": "aarch64-linux-gnu-gcc",
        "CXX_aarch64_unknown_linux_gnu": "aarch64-linux-gnu-g++",
    }
    target = ROOT / "target" / "aarch64"
    say("building decode for aarch64")
    arguments = ["--profile", profile, "--target", TRIPLE, "--target-dir", target, "-p", "niwaki"]
    return benchmark("decode", *arguments, cargo="/usr/bin/cargo", env=environment)


def llama_cpp_sources():
    """The sources of the llama.cpp that the peers' Python has, as its source distribution carries them."""
    requirement = next(line for line in (HERE / "requirements.txt").read_text().splitlines() if "llama" in line)
    name = requirement.replace("==", "-")
    if not (TARGET / name).is_dir():
        run(python(), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", TARGET, requirement)
        run("tar", "-xzf", TARGET / f"{name}.tar.gz", "-C", TARGET)
    return TARGET / name / "vendor" / "llama.cpp"


def build_llama_cpp(cpus):
    """The program that runs llama.cpp, and the folders of libraries for each CPU."""
    sources, libraries = llama_cpp_sources(), {}
    options = ["GGML_NATIVE=OFF", "GGML_OPENMP=OFF", "BUILD_SHARED_LIBS=ON", "CMAKE_BUILD_TYPE=Release"]
    options += [f"LLAMA_BUILD_{part}=OFF" for part in ("TESTS", "TOOLS", "EXAMPLES", "SERVER", "COMMON", "APP")]
    options += ["LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", f"CMAKE_TOOLCHAIN_FILE={HERE / 'aarch64.cmake'}"]
    # The library of the model is the same for all; only the kernels are compiled for each CPU.
    wanted = {"dotprod": "llama", **{cpu: "ggml-cpu" for cpu in cpus if cpu != "dotprod"}}
    for cpu, goal in wanted.items():
        build = FOLDER / cpu
        if not (build / "bin" / f"lib{goal}.so").exists():
            say(f"compiling llama.cpp for {cpu}")
            defines = [f"-D{option}" for option in (*options, f"GGML_CPU_ARM_ARCH={CPUS[cpu][1]}")]
            run("cmake", "-G", "Ninja", "-S", sources, "-B", build, *defines)
            run("ninja", "-C", build, goal)
        libraries[cpu] = f"{build / 'bin'}:{FOLDER / 'dotprod' / 'bin'}"
    program = FOLDER / "llama_cpp"
    flags = ["-O2", f"-I{sources / 'include'}", f"-I{sources / 'ggml' / 'include'}", f"-L{FOLDER / 'dotprod' / 'bin'}"]
    link = ["-lllama", "-lggml", "-lggml-base", "-lggml-cpu", "-Wl,--allow-shlib-undefined"]
    run("aarch64-linux-gnu-gcc", *flags, HERE / "engines" / "llama_cpp.c", "-o", program, *link)
    return program, libraries


def plugin():
    """The counting plugin."""
    library = FOLDER / "libcount_instructions.so"
    run("cc", "-O2", "-shared", "-fPIC", HERE / "count_instructions.c", "-o", library)
    return library


def count(counter, cpu, command, tokens, libraries=None):
    """Guest instructions by class of one run."""
    with tempfile.NamedTemporaryFile("r") as counts:
        search = ["-E", f"LD_LIBRARY_PATH={libraries}"] if libraries else []
        emulator = ["qemu-aarch64", *search, "-cpu", CPUS[cpu][0], "-plugin", f"{counter},out={counts.name}"]
        command = [str(part) for part in (*emulator, *command, *tokens)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {name: int(value) for name, value in (pair.split("=") for pair in Path(counts.name).read_text().split())}


def measure(jobs, counter):
    """Instructions per token by class, by job and slope. Jobs: (engine, weights, cpu) -> (command, libraries)."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (job, what, tokens): pool.submit(count, counter, job[2], command, tokens, libraries)
            for job, (command, libraries) in jobs.items()
            for what, (*both, _) in SLOPES.items()
            for tokens in both
        }
        per_token = {}
        for job in jobs:
            for what, (less, more, by) in SLOPES.items():
                before, after = (runs[job, what, tokens].result() for tokens in (less, more))
                per_token[(*job, what)] = {kind: (after[kind] - before[kind]) // by for kind in after}
                say(f"{' '.join(job)} {what}: {per_token[(*job, what)]['total']}")
    return per_token


def print_tables(per_token, weights, cpus):
    """Counts, ratios and goals; then what they are made of."""
    rows, classes = [], []
    millions = lambda value: f"{value / 1e6:.2f} M"
    for weight in weights:
        for what in SLOPES:
            for cpu in cpus:
                mine, other = (per_token.get((engine, weight, cpu, what)) for engine in (NIWAKI, LLAMA))
                goal = GOALS.get((weight, what), {}).get(cpu)
                ratio = mine["total"] / other["total"] if other else None
                met = "-" if ratio is None or goal is None else "yes" if ratio <= goal else "no"
                shown = [millions(mine["total"])]
                shown += [millions(other["total"]), f"{ratio:.2f}"] if other else ["-", "-"]
                rows.append([what, weight, cpu, *shown, "-" if goal is None else f"<= {goal}", met])
                for engine, counts in ((NIWAKI, mine), (LLAMA, other)):
                    if counts:
                        parts = [millions(value) for kind, value in counts.items() if kind != "total"]
                        classes.append([f"{what} {weight} {cpu}", engine, *parts])
    print(table(["per token", "weights", "cpu", NIWAKI, LLAMA, "ratio", "goal", "met"], rows))
    kinds = [kind for kind in next(iter(per_token.values())) if kind != "total"]
    print(table(["per token", "engine", *kinds], classes))


def main():
    listed = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("--weights", type=listed, default=["int4", "int8"])
    parser.add_argument("--cpus", type=listed, default=list(CPUS))
    parser.add_argument("--no-peers", action="store_true", help="count Niwaki only")
    parser.add_argument("--profile", default="release", choices=["release", "dist"], help="Cargo's, for Niwaki")
    parser.add_argument("--json", metavar="FILE", help="also write all counts here")
    arguments = parser.parse_args()

    FOLDER.mkdir(parents=True, exist_ok=True)
    counter = plugin()
    models = Models(find(arguments.shape), niwaki_programs()[0])
    decode = decode_program(arguments.profile)
    jobs = {
        (NIWAKI, weights, cpu): ([decode, models.bundle(weights)], None)
        for weights in arguments.weights
        for cpu in arguments.cpus
    }
    models.forget_floats()
    if not arguments.no_peers:
        program, libraries = build_llama_cpp(arguments.cpus)
        for weights in arguments.weights:
            for cpu in arguments.cpus:
                jobs[LLAMA, weights, cpu] = [program, models.gguf(weights)], libraries[cpu]
    per_token = measure(jobs, counter)
    print(f"{models.shape.name}, guest instructions per token, 1 thread\n")
    print_tables(per_token, arguments.weights, arguments.cpus)
    if arguments.json:
        keys = ("engine", "weights", "cpu", "what")
        rows = [{**dict(zip(keys, key)), **counts} for key, counts in per_token.items()]
        Path(arguments.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
