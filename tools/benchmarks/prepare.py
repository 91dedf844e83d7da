"""What a benchmark needs before it measures: peers, programs, models. All of it goes to target/benchmarks.

Environment:
  NIWAKI_BENCH_PYTHON    a Python that has requirements.txt installed already
  NIWAKI_BENCH_PROGRAMS  a folder with `niwaki` and `decode` built already
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from shape import Shape
from vocabulary import write_tokenizer

HERE = pathlib.Path(__file__).parent.resolve()
ROOT = HERE.parents[1]
TARGET = ROOT / "target" / "benchmarks"
# Of the same bits. (llama.cpp has codebooks, too, IQ4_NL, but its Python does not write them.)
GGUF = {"int4": "Q4_0", "codebook4": "Q4_0", "int8": "Q8_0"}


def say(text):
    """Tells what is going on, on stderr: stdout holds results."""
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a command; its output is shown only when it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def python():
    """The Python that has the peers installed; made on first use, which compiles llama.cpp for this CPU."""
    given = os.environ.get("NIWAKI_BENCH_PYTHON")
    if given:
        return pathlib.Path(given)
    venv = TARGET / "venv"
    ready = venv / "ready"
    requirements = (HERE / "requirements.txt").read_text()
    if not ready.is_file() or ready.read_text() != requirements:
        say("installing the peers; llama.cpp is compiled for this CPU, which takes some minutes")
        run(sys.executable, "-m", "venv", venv)
        pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        environment = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        run(*pip, "--no-binary", "llama_cpp_python", "-r", HERE / "requirements.txt", env=environment)
        ready.write_text(requirements)
    return venv / "bin" / "python"


def benchmark(name, *arguments, cargo="cargo", **options):
    """A program of a folder `benches`: cargo says where it puts it."""
    command = [cargo, "build", "--bench", name, "--message-format=json-render-diagnostics", *map(str, arguments)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, cwd=ROOT, check=True, **options)
    messages = (json.loads(line) for line in done.stdout.splitlines())
    programs = [message["executable"] for message in messages if message.get("executable")]
    return pathlib.Path(programs[-1])


def niwaki_programs():
    """The `niwaki` command and the benchmark `decode`."""
    given = os.environ.get("NIWAKI_BENCH_PROGRAMS")
    if given:
        return pathlib.Path(given) / "niwaki", pathlib.Path(given) / "decode"
    say("building niwaki")
    run("cargo", "build", "--release", cwd=ROOT)
    return ROOT / "target" / "release" / "niwaki", benchmark("decode", "--release", "--workspace")


def llama_cpp_program():
    """The program that runs llama.cpp, linked with the library that the peers' Python has."""
    found = run(python(), "-c", "import importlib.util as u; print(u.find_spec('llama_cpp').origin)")
    package = pathlib.Path(found.strip()).parent
    program = TARGET / "llama_cpp"
    libraries = package / "lib"
    TARGET.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", f"-I{package.parent / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    sources = [HERE / "engines" / "llama_cpp.c", "-o", program]
    run("cc", *flags, *sources, "-lllama", "-lggml", "-lggml-base", "-lggml-cpu")
    return program


class Models:
    """The same shape in the form of every engine."""

    def __init__(self, shape_file, niwaki):
        self.file, self.niwaki = shape_file, niwaki
        self.shape = Shape.load(shape_file)
        self.folder = TARGET / self.shape.name
        stamp = self.folder / "shape"
        # What else the models hold, so that those without it are made anew.
        text = f"{shape_file.read_text()}\nwith a vocabulary\n"
        if stamp.is_file() and stamp.read_text() != text:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(text)

    def bundle(self, weights):
        """A .niwaki bundle with int4 or int8 weights, or with those of int4 as codebook4."""
        bundle = self.folder / f"{weights}.niwaki"
        if not bundle.is_file() and weights == "codebook4":
            program = benchmark("int4_as_codes", "--release", "--workspace")
            say(f"building {bundle.name} of {self.shape.name}")
            run(program, self.bundle("int4"), bundle)
        elif not bundle.is_file():
            export = self._export("fp32")
            say(f"building {bundle.name} of {self.shape.name}")
            run(self.niwaki, "build", export, "-o", bundle, "--weights", weights, "--method", "rtn")
        return bundle

    def gguf(self, weights):
        """GGUF with all matrices in Q4_0 or Q8_0."""
        kind = GGUF[weights]
        return self._make(f"{kind}.gguf", lambda out: self._script("write_gguf.py", out, kind))

    def genai(self):
        """An export with int4 weights that onnxruntime-genai runs."""
        return self._export("int4")

    def forget_floats(self):
        """Removes the fp32 export, which nothing but building reads."""
        shutil.rmtree(self.folder / "fp32", ignore_errors=True)

    def _export(self, kind):
        # An exporter's own graphs lie beside the shape in ../shared/shapes; without them the graph is made up.
        graph = self.file.parent / f"{self.file.stem}--genai-{kind}"

        def make(out):
            if (graph / "model.onnx").is_file():
                run(python(), HERE / "fill_weights.py", self.file, graph, out)
            else:
                self._script("write_export.py", out, kind)
            write_tokenizer(self.shape, out)

        return self._make(kind, make)

    def _script(self, script, out, kind):
        run(python(), HERE / script, self.file, out, kind)

    def _make(self, name, make):
        """Makes a file or folder under another name first, so that a broken one is never taken for whole."""
        path, unfinished = self.folder / name, self.folder / f"{name}.unfinished"
        if not path.exists():
            say(f"writing {name} of {self.shape.name}")
            make(unfinished)
            unfinished.rename(path)
        return path
