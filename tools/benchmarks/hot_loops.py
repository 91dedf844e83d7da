"""The innermost loops of the matrix products: what they are made of, and how fast llvm-mca says a core runs them.

    python3 tools/benchmarks/hot_loops.py PROGRAM [--mca llvm-mca] [--show]

PROGRAM is the benchmark `decode` with symbols, for aarch64 (as arm_instructions.py builds it and says where) or for
x86_64 (`cargo build --profile profiling --workspace --bench decode`). A loop counts when
it multiplies integers; its instructions are counted by what they are for, and llvm-mca models the cores below as if
all loads hit the first cache. Needs objdump of binutils (aarch64: binutils-aarch64-linux-gnu) and llvm-mca.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter

from report import table

# Least integer products in a loop of a matrix product.
LEAST_PRODUCTS = 8
# What an instruction is for, by its mnemonic; the first that matches. q registers hold 16 bytes of weights.
AARCH64 = [
    ("product", r"sdot|smmla|smlal2?|smull2?|sadalp"),
    ("load", r"ld[pr].*|ld1.*"),
    ("unpack", r"and|ushr|sshr|shl|tbl|zip.|uzp.|trn.|ext|dup|movi|bic|eor"),
    ("convert", r"scvtf|fcvtl2?|addp|saddlp|uaddlp"),
    ("scale and sum", r"fml[as]|fmul|fadd|add|sub|mov"),
]
X86_64 = [
    ("product", r"vpdpbusd|vpmaddubsw|vpmaddwd"),
    ("convert", r"vcvt.*"),
    ("scale and sum", r"vfn?m(add|sub).*|vmul.*|vadd.*|vpadd.*|vpsub.*"),
    ("unpack", r"vpand.*|vpsr.*|vpxor.*|vpshuf.*|vpunpck.*|vperm.*|vpbroadcast.*|vbroadcast.*|vpternlog.*"),
    ("load", r"vmov.*"),
]
CORES = {
    "aarch64": {
        "smmla": ["neoverse-n2", "cortex-a510"],
        # llvm-mca takes a Cortex-A76 for an A57; the Neoverse N1 is the same core.
        "sdot": ["neoverse-n1", "cortex-a55"],
        "": ["cortex-a72", "cortex-a53"],
    },
    "x86_64": {"": ["znver4", "icelake-server"]},
}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*(.*?)\s*$")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
BRANCH = re.compile(r"^(b\..*|b|cbn?z|tbn?z|j.*)$")


def functions(program, objdump):
    """Name and instructions (address, mnemonic, operands) of the kernels' functions."""
    command = [objdump, "-d", "--no-show-raw-insn", "-C", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        name, body = "", []
        for line in process.stdout:
            header, instruction = FUNCTION.match(line), INSTRUCTION.match(line)
            if header:
                if body:
                    yield name, body
                name, body = header[1], []
            elif instruction and "niwaki_kernels" in name:
                # AArch64's objdump writes comments after //, x86's after #.
                operands = re.split(r"\s+(?://|#)\s", instruction[3])[0]
                body.append((int(instruction[1], 16), instruction[2], operands))
        if body:
            yield name, body


def innermost_loops(body):
    """Stretches from a backward branch's target to the branch, that hold no other."""
    index = {address: position for position, (address, _, _) in enumerate(body)}
    spans = []
    for position, (address, mnemonic, operands) in enumerate(body):
        if BRANCH.match(mnemonic):
            target = re.search(r"\b(?:0x)?([0-9a-f]+)(?: <|$)", operands)
            start = index.get(int(target[1], 16)) if target else None
            if start is not None and start < position:
                spans.append((start, position))
    inner = [span for span in spans if not any(o != span and span[0] <= o[0] and o[1] <= span[1] for o in spans)]
    return [body[start : end + 1] for start, end in sorted(set(inner))]


def by_purpose(loop, purposes):
    """Number of instructions for each purpose."""
    counts = Counter()
    for _, mnemonic, _ in loop:
        purpose = next((name for name, pattern in purposes if re.fullmatch(pattern, mnemonic)), "loop and addresses")
        counts[purpose] += 1
    return counts


def cycles(loop, triple, core, mca):
    """Cycles of one pass, as llvm-mca models the core; None when it does not know an instruction."""
    text = []
    for _, mnemonic, operands in loop:
        operands = re.sub(r"\s*<[^>]*>", "", operands)
        if BRANCH.match(mnemonic):
            operands = re.sub(r"(?:0x)?[0-9a-f]+$", ".", operands)
        text.append(f"\t{mnemonic}\t{operands}")
    features = {"neoverse-n2": "+i8mm", "cortex-a510": "+i8mm"}.get(core, "")
    command = [mca, f"-mtriple={triple}", f"-mcpu={core}", f"-mattr={features}", "-iterations=200", "-"]
    done = subprocess.run(command, input="\n".join(text) + "\n", capture_output=True, text=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(total[1]) / 200 if total else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--mca", default="llvm-mca", help="the llvm-mca to run")
    parser.add_argument("--show", action="store_true", help="also print the instructions")
    arguments = parser.parse_args()

    header = subprocess.check_output(["file", "-L", arguments.program], text=True)
    machine = "aarch64" if "aarch64" in header else "x86_64"
    objdump = "aarch64-linux-gnu-objdump" if machine == "aarch64" else "objdump"
    purposes = AARCH64 if machine == "aarch64" else X86_64
    names = [*dict(purposes), "loop and addresses"]
    rows, seen = [], set()
    for function, body in functions(arguments.program, objdump):
        for loop in innermost_loops(body):
            mnemonics = tuple(mnemonic for _, mnemonic, _ in loop)
            counts = by_purpose(loop, purposes)
            name = re.sub(r"<.*|::h[0-9a-f]{16}$", "", function.replace("niwaki_kernels::", ""))
            if counts["product"] < LEAST_PRODUCTS or (name, mnemonics) in seen:
                continue
            seen.add((name, mnemonics))
            kinds = CORES[machine]
            cores = next(cores for kind, cores in kinds.items() if kind in mnemonics or not kind)
            modelled = [(core, cycles(loop, f"{machine}-linux-gnu", core, arguments.mca)) for core in cores]
            times = ", ".join(f"{core} {value:.1f}" if value else f"{core} n/a" for core, value in modelled)
            rows.append([name, len(loop), *(counts[kind] for kind in names), times])
            if arguments.show:
                print(f"{function}\n" + "\n".join(f"    {m:10} {o}" for _, m, o in loop) + "\n")
    print(table(["loop of", "instructions", *names, "cycles"], rows))


if __name__ == "__main__":
    sys.exit(main())
