"""Runs the pods of deploy/kubernetes in a Docker engine as a kubelet would: users, read-only file systems, limits,
volumes, arguments and probes are the manifests'. In the sidecar's, a cache goes through the socket and the shared
memory that its containers have in common. usage: pod.py FOLDER, with in.safetensors in it."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}


def docker(*arguments, **options):
    return subprocess.run(["docker", *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def size(text):
    number, unit = re.fullmatch(r"(\d+)([MG]i)", text).groups()
    return int(number) * UNITS[unit]


class Pod:
    """The containers of a Deployment's template, under names of their own, without a network."""

    def __init__(self, manifest, stack):
        self._spec = yaml.safe_load(manifest.read_text())["spec"]["template"]["spec"]
        self._name = f"kvc-pod-{os.getpid()}-{manifest.parent.name}"
        self._stack = stack
        for volume in self._spec.get("volumes", []):
            # As an emptyDir is made: writable for everybody, and the group's where the pod has one.
            options = ["mode=2777", f"gid={self._spec['securityContext']['fsGroup']}"]
            if limit := volume["emptyDir"].get("sizeLimit"):
                options.append(f"size={size(limit)}")
            name = f"{self._name}-{volume['name']}"
            docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", f"o={','.join(options)}", name,
                   check=True)
            stack.callback(docker, "volume", "rm", name)

    def container(self, name):
        containers = [*self._spec.get("initContainers", []), *self._spec["containers"]]
        return next(container for container in containers if container["name"] == name)

    def flags(self, name):
        pod, own = self._spec["securityContext"], self.container(name)
        security, limits = own["securityContext"], own["resources"]["limits"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] != 0 and security["allowPrivilegeEscalation"] is False
        flags = ["--network", "none", "--security-opt", "no-new-privileges"]
        flags += ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--memory", size(limits["memory"])]
        if "cpu" in limits:
            flags += ["--cpus", min(int(limits["cpu"]), os.cpu_count())]
        if security["readOnlyRootFilesystem"]:
            flags.append("--read-only")
        for capability in security["capabilities"]["drop"]:
            flags += ["--cap-drop", capability]
        for mount in own.get("volumeMounts", []):
            flags += ["-v", f"{self._name}-{mount['name']}:{mount['mountPath']}:nocopy"]  # as nobody fills an emptyDir
        return flags

    def start(self, name, image):
        started = f"{self._name}-{name}"
        self._stack.callback(docker, "rm", "-f", "-v", started)
        docker("run", "-d", "--name", started, *self.flags(name), image, *self.container(name)["args"], check=True)
        return started

    def wait_until_started(self, started, name):
        probe = self.container(name)["startupProbe"]
        if "grpc" in probe:
            command = ["kv-compressd", f"--listen=127.0.0.1:{probe['grpc']['port']}", "--healthcheck"]
        else:
            command = probe["exec"]["command"]
        for _ in range(probe["failureThreshold"]):
            last = docker("exec", started, *command)
            if last.returncode == 0:
                return
            time.sleep(probe["periodSeconds"])
        raise AssertionError(f"{name} does not start: {last.stderr}{docker('logs', started).stderr}")

    def stop(self, started):
        docker("stop", "-t", self._spec["terminationGracePeriodSeconds"], started, check=True)
        code = docker("inspect", "-f", "{{.State.ExitCode}}", started).stdout.strip()
        assert code == "0", f"exit status {code}: {docker('logs', started).stderr}"


def main(work):
    with contextlib.ExitStack() as stack:
        pod = Pod(MANIFESTS / "base" / "deployment.yaml", stack)
        daemon = pod.start("kv-compressd", "kv-compressd:test")
        pod.wait_until_started(daemon, "kv-compressd")
        pod.stop(daemon)
    print("the pod of the Deployment starts, answers its probe and ends")

    with contextlib.ExitStack() as stack:
        pod = Pod(MANIFESTS / "sidecar" / "deployment.yaml", stack)
        daemon = pod.start("kv-compressd", "kv-compressd:test")
        pod.wait_until_started(daemon, "kv-compressd")
        listen = next(flag for flag in pod.container("kv-compressd")["args"] if flag.startswith("--listen="))
        server = listen.removeprefix("--listen=")
        for direction in (["-input", "in.safetensors", "-output", "small.safetensors"],
                          ["-decompress", "-input", "small.safetensors", "-output", "out.safetensors"]):
            call = docker("run", "--rm", *pod.flags("inference-server"), "-v", f"{work}:/data", "kv-compress:test",
                          "-server", server, "-verbose", *direction)
            assert call.returncode == 0, call.stderr
            assert "transport: shared memory" in call.stderr, call.stderr
        subprocess.run([ROOT / "scripts" / "check_roundtrip.py",
                        *(f"{work}/{name}.safetensors" for name in ("in", "small", "out"))], check=True)
        left = docker("exec", daemon, "ls", "-A", "/dev/shm", check=True).stdout
        assert left == "", f"left in the shared memory: {left}"
        pod.stop(daemon)
    print("the pod with the sidecar: a cache there and back through shared memory, of which nothing is left")


if __name__ == "__main__":
    main(*sys.argv[1:])
