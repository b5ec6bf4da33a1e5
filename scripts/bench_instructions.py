#!/usr/bin/env python3
"""Counts the instructions that the daemon takes for one CompressTensor, beside those of a gRPC service that does
nothing: by callgrind, so two runs give the same within a tenth, whatever else the machine does. What the codec
takes is left out of the ratio.

usage: bench_instructions.py [--check] [--output instructions.json]

With --check the exit status is 1 when a ratio is above its target. Without valgrind nothing is measured: a line says so.
"""
import argparse
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from bench_transport import Server

# Most instructions of a call outside the codec, in those of a call that does nothing, by bytes of the tensor.
TARGETS = {4 << 10: 1.65, 64 << 10: 1.9}
CODEC = "kvcompress::CodecChain::EncodeBlock("
# Two runs that differ only in these have a start, an end and a warm-up that are alike.
FEW, MANY = 100, 1100


class Counted(Server):
    """A server under callgrind."""

    def __init__(self, folder, name, command):
        self.profile = folder / f"{name}.callgrind"
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.profile}"]
        super().__init__(folder, name, lambda port_file, listen: [*valgrind, *command(port_file, listen)])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def instructions(self):
        """Since its start, all and those of the codec. After stop()."""
        text = subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", self.profile],
                              stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = re.findall(r"^ *([\d,]+) \(.*?%\)  (.*)$", text, re.MULTILINE)
        counts = [(int(count.replace(",", "")), name) for count, name in lines]
        total = next(count for count, name in counts if name == "PROGRAM TOTALS")
        return total, max((count for count, name in counts if CODEC in name), default=0)


def count(folder, name, command, program, tensor_bytes):
    """Instructions of one call: all, and those of the codec."""
    found = []
    for calls in (FEW, MANY):
        server = Counted(folder, name, command)
        try:
            flags = [f"--calls={calls}", f"--tensor_bytes={tensor_bytes}", f"--message_bytes={tensor_bytes}"]
            subprocess.run([program, "latency", *flags, f"unary,{server.address['unix']}"], stdout=subprocess.DEVNULL,
                           check=True, timeout=300)
        finally:
            server.stop()
        found.append(server.instructions())
        for path in folder.iterdir():
            path.unlink()
    return [(many - few) / (MANY - FEW) for few, many in zip(*found)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when a target is missed")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("instructions of a call: not measured, valgrind is not installed")
        return 0
    program = str(args.build / "bench" / "transport" / "kvc_bench_transport")
    commands = {
        "sink": lambda port_file, listen: [program, "serve", port_file, "sink", *listen],
        "daemon": lambda port_file, listen: [str(args.bin / "kv-compressd"), "--listen", ",".join(listen),
                                             "--metrics-listen", "off", "--port-file", port_file, "--log-level", "error"],
    }
    rows, targets = [], []
    for tensor_bytes, target in TARGETS.items():
        with tempfile.TemporaryDirectory(prefix="kvb") as folder:
            (nothing, _), (all_of_it, codec) = (count(pathlib.Path(folder), name, command, program, tensor_bytes)
                                                for name, command in commands.items())
        ratio = (all_of_it - codec) / nothing
        rows.append({"tensor_bytes": tensor_bytes, "nothing": nothing, "call": all_of_it, "codec": codec, "ratio": ratio})
        what = f"instructions of a CompressTensor of {tensor_bytes >> 10} KiB outside the codec / unary call that does nothing"
        targets.append({"what": what, "value": ratio, "wanted": f"at most {target}", "met": ratio <= target,
                        "exact": True})
        print(f"{'met   ' if targets[-1]['met'] else 'MISSED'} {what}: {ratio:.2f} (at most {target}); "
              f"{all_of_it - codec:.0f} and {nothing:.0f}, codec {codec:.0f}")
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "targets": targets}, indent=1) + "\n")
    return 1 if args.check and not all(target["met"] for target in targets) else 0


if __name__ == "__main__":
    sys.exit(main())
