"""One run of one engine, in a process of its own."""

import json
import os
import pathlib
import subprocess
import threading
import time


def settle(model):
    """Has the system read a file, or the files of a folder, anew: its page cache holds a file that was just written in
    pieces of the size in which it was written, which takes more or less time to map."""
    model = pathlib.Path(model)
    for path in [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file()):
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 20):
                pass


def timed(command, prompt_tokens, new_tokens, threads, extra=()):
    """Seconds of wall clock and CPU time of the prompt and of the new tokens, after a warm-up in the same process."""
    arguments = [prompt_tokens, new_tokens, threads, 1, *extra]
    output = subprocess.check_output([str(part) for part in (*command, *arguments)], text=True)
    return json.loads(output.splitlines()[-1])


def _once(command, prompt_tokens, threads, extra):
    """The arguments of one cold run with one token after the prompt."""
    return [str(part) for part in (*command, prompt_tokens, 1, threads, *((0, *extra) if extra else ()))]


def first_token(command, threads, extra=()):
    """From the start of the process to the first token after a prompt of 8, files being in the page cache: seconds of
    wall clock, and of CPU time of the whole process, which computes one more token and ends."""
    arguments = _once(command, 8, threads, extra)
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    elapsed = time.perf_counter() - start
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed")
    return elapsed, usage.ru_utime + usage.ru_stime


def anonymous_peak_bytes(command, threads, extra=()):
    """The largest RssAnon while 511 tokens of prompt and one more are computed."""
    arguments = _once(command, 511, threads, extra)
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        status, peak = pathlib.Path(f"/proc/{process.pid}/status"), 0
        ended = threading.Event()
        waiter = threading.Thread(target=lambda: (process.wait(), ended.set()))
        waiter.start()
        while not ended.wait(0.002):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                break
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))])
        waiter.join()
    if process.returncode:
        raise SystemExit(f"{command[0]} failed")
    return peak
