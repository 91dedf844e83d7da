#!/usr/bin/env python3
"""Says what takes the bytes of a native library: by section and by crate.

    tests/mobile/library_size.py LIBRARY.so [--rows N] [--symbols CRATE]

The library has to have its symbols: android/build-native.sh with CARGO_PROFILE_DIST_STRIP=none. Code that a crate makes
of another's generic types counts for the first crate in its name that is not Rust's own. Needs llvm-nm-22 and
llvm-readelf-22.
"""

import argparse
import re
import subprocess
from collections import Counter

STANDARD = {"core", "alloc", "std"}
# Where a path begins in a demangled name.
CRATE = re.compile(r"(?<![\w:$])([a-z_][a-z0-9_]*)::")
# Functions in C and assembly: a pattern of their names, and whose they are.
NATIVE = [
    (r"blake3_", "blake3"),
    (r"ring_core_|.*_ring_core_", "ring"),
    (r"arm64|armv|avx|fma|sse|apple_amx", "tract_linalg"),
    (r"uniffi_|ffi_|UNIFFI_", "niwaki_bindings"),
]
# Sections that a stripped library keeps.
KINDS = {"t": "code", "r": "constants", "d": "constants", "b": "zeros"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def sections(library):
    """Names and sizes of the sections that are loaded."""
    found = {}
    for line in output("llvm-readelf-22", "--sections", "--wide", library).splitlines():
        match = re.match(r" *\[ *\d+\] (\S+) +(\S+) +\S+ \S+ (\S+) \S+ +(\S*) ", line)
        if match and "A" in match[4] and match[2] != "NOBITS":
            found[match[1]] = int(match[3], 16)
    return found


def crate(name):
    """The crate that a demangled name counts for."""
    for pattern, owner in NATIVE:
        if re.match(pattern, name):
            return owner
    names = CRATE.findall(name)
    return next((name for name in names if name not in STANDARD), "std" if names else "(other)")


def symbols(library):
    """Size, kind and demangled name of every symbol, each place once."""
    seen = set()
    for line in output("llvm-nm-22", "--print-size", "--defined-only", "--demangle", library).splitlines():
        match = re.match(r"([0-9a-f]+) ([0-9a-f]+) (\w) (.*)", line)
        if match and match[3].lower() in KINDS and match[1] not in seen:
            seen.add(match[1])
            yield int(match[2], 16), KINDS[match[3].lower()], match[4]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("library")
    arguments.add_argument("--rows", type=int, default=25, help="how many crates or symbols to show")
    arguments.add_argument("--symbols", metavar="CRATE", help="the largest symbols of this crate instead")
    arguments = arguments.parse_args()

    found = [symbol for symbol in symbols(arguments.library) if symbol[1] != "zeros"]
    if arguments.symbols:
        of_crate = sorted((symbol for symbol in found if crate(symbol[2]) == arguments.symbols), reverse=True)
        for size, kind, name in of_crate[: arguments.rows]:
            print(f"{size:10,}  {kind:9}  {name}")
        return

    loaded = sections(arguments.library)
    print(f"{sum(loaded.values()):10,}  loaded from the file, of this:")
    for name, size in sorted(loaded.items(), key=lambda item: -item[1]):
        if size >= 1000:
            print(f"{size:10,}  {name}")
    totals, code = Counter(), Counter()
    for size, kind, name in found:
        totals[crate(name)] += size
        code[crate(name)] += size * (kind == "code")
    print(f"\n{sum(totals.values()):10,}  in symbols ({sum(code.values()):,} code), of this:")
    for name, size in totals.most_common(arguments.rows):
        print(f"{size:10,}  {name} ({code[name]:,} code)")


if __name__ == "__main__":
    main()
