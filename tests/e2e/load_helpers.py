"""Load on a daemon from many streams at once, by kvc_load (load/main.cc)."""

import json
import pathlib
import subprocess


class Load:
    """A run of kvc_load: Load(bin_dir, address, streams=8, tensor_bytes=MIB)."""

    def __init__(self, bin_dir, address, **flags):
        assert (bin_dir / "kvc_load").exists(), f"{bin_dir}/kvc_load is not built"
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        self.process = subprocess.Popen([bin_dir / "kvc_load", f"--address={address}", *arguments],
                                        stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def outcomes(self, seconds=100):
        """What each stream tells, once all have ended."""
        text, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0
        return json.loads(text)


def load(bin_dir, address, seconds=100, **flags):
    with Load(bin_dir, address, **flags) as running:
        return running.outcomes(seconds)


def expected_hashes(bin_dir, streams, **flags):
    """What the calls of each stream must give: what the codec gives in this machine's own process."""
    inputs = min(streams, flags.get("inputs", 64))
    alone = [outcome["hashes"] for outcome in load(bin_dir, "local", streams=inputs, **flags)]
    assert all(len(hashes) == 1 for hashes in alone)
    return [alone[index % inputs] for index in range(streams)]


def memory(pid):
    """VmHWM and VmRSS of a process in bytes: what it held at most, and now."""
    lines = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))


def descriptors(pid):
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))
