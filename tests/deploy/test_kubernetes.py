"""What kubectl makes of deploy/kubernetes, by the published schemas of Kubernetes and of the Prometheus operator, and
by the daemon's own word: each argument is parsed by it."""

import functools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
import pydantic
import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from mistakes import replaced

GIB, MIB = 1 << 30, 1 << 20
# What a daemon needs besides its budget (tests/e2e/test_overload.py holds it to 150 MiB), with room.
OVERHEAD = 256 * MIB
# Of the oldest Kubernetes whose sidecars and preStop sleeps are on by default, and of the newest.
VERSIONS = ["1.30", "1.37"]
# Of the Prometheus operator.
MODELS = {"ServiceMonitor": ServiceMonitor, "PrometheusRule": PrometheusRule}
NAME = {"app.kubernetes.io/name": "kv-compressd"}
KUBECTL = pathlib.Path(sys.executable).with_name("kubectl")
FOLDERS = ["base", "overlays/monitoring", "overlays/autoscaling", "sidecar"]


@functools.cache
def kustomized(folder):
    result = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def resolve(folder):
    """What `kubectl apply -k` sends to a cluster."""
    return list(yaml.safe_load_all(kustomized(folder)))


@pytest.fixture(params=FOLDERS)
def manifests(request, repository):
    return resolve(repository / "deploy/kubernetes" / request.param)


def of_kind(manifests, kind):
    return [each for each in manifests if each["kind"] == kind]


def pod_of(manifests):
    (deployment,) = of_kind(manifests, "Deployment")
    return deployment["spec"]["template"]["spec"]


def daemon_of(pod):
    (container,) = [each for each in [*pod.get("initContainers", []), *pod["containers"]] if "kv-compressd:" in each["image"]]
    return container


def arguments(container):
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])


def quantity(text):
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB|Mi|Gi|m|g)", text).groups()
    return int(number) * (GIB if unit[0] in "Gg" else MIB)


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


def test_every_folder_is_tested(repository):
    folders = {path.parent for path in (repository / "deploy/kubernetes").rglob("kustomization.yaml")}
    assert folders == {repository / "deploy/kubernetes" / folder for folder in FOLDERS}
    used = {each["kind"] for folder in folders for each in resolve(folder)}
    assert used == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler",
                    "ServiceMonitor"}


@pytest.mark.parametrize(("folder", "right", "wrong"), [
    ("base", "services.yaml", "service.yaml"), ("base", "resources:", "resource:"),
    ("overlays/autoscaling", "/spec/replicas", "/spec/replica")])
def test_kubectl_refuses_what_is_wrong(repository, tmp_path, folder, right, wrong):
    shutil.copytree(repository / "deploy/kubernetes", tmp_path, dirs_exist_ok=True)
    file = tmp_path / folder / "kustomization.yaml"
    file.write_text(replaced(file.read_text(), right, wrong))
    with pytest.raises(AssertionError, match=wrong.rstrip(":")):
        kustomized(tmp_path / folder)


def test_documented_commands_are_kubectls(repository):
    commands = re.findall("`kubectl ([^`]+)`", (repository / "docs/operations.md").read_text())
    assert commands
    for command in commands:
        # Flags are parsed before help is given.
        subprocess.run([KUBECTL, *shlex.split(command), "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60)
    folders = {folder for command in commands for folder in re.findall(r"-k (\S+)", command)}
    assert folders <= {f"deploy/kubernetes/{folder}" for folder in FOLDERS}


def validate(document, version):
    model = MODELS.get(document["kind"])
    if model is None:
        kubernetes_validate.validate(document, version, strict=True)
    else:
        # A model drops the fields that it does not know.
        assert model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True) == document


def prometheus_rule(spec):
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "kv-compressd"},
            "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_keep_the_published_schemas(manifests, version):
    for document in manifests:
        validate(document, version)


def test_the_rules_are_the_spec_of_a_prometheus_rule(deploy):
    validate(prometheus_rule(yaml.safe_load((deploy / "prometheus/rules.yml").read_text())), VERSIONS[-1])


def test_the_schemas_refuse_what_is_wrong(deploy):
    (deployment,) = of_kind(resolve(deploy / "kubernetes/base"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["grpc"]["prot"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment, VERSIONS[-1])


@pytest.mark.parametrize(("right", "wrong"), [
    ("labels:", "label:"), ("jobLabel:", "job_label:"), ("port:", "ports:"), ("interval: 5s", "interval: 5 sec")])
def test_the_model_of_monitors_refuses_what_is_wrong(deploy, right, wrong):
    text = (deploy / "kubernetes/overlays/monitoring/service-monitor.yaml").read_text()
    with pytest.raises((AssertionError, pydantic.ValidationError)):
        validate(yaml.safe_load(replaced(text, right, wrong)), VERSIONS[-1])


@pytest.mark.parametrize(("right", "wrong"), [
    ("annotations:", "annotation:"), ("for:", "during:"), ("expr:", "expression:"), ("groups:", "group:")])
def test_the_model_of_rules_refuses_what_is_wrong(deploy, right, wrong):
    text = (deploy / "prometheus/rules.yml").read_text()
    with pytest.raises((AssertionError, pydantic.ValidationError)):
        validate(prometheus_rule(yaml.safe_load(replaced(text, right, wrong))), VERSIONS[-1])


def test_the_daemon_takes_every_argument(manifests, bin_dir):
    daemon = daemon_of(pod_of(manifests))
    commands = [probe["exec"]["command"][1:] for probe in (daemon["startupProbe"], daemon["livenessProbe"]) if "exec" in probe]
    for given in [daemon["args"], *commands]:
        result = subprocess.run([bin_dir / "kv-compressd", *given, "--help"], capture_output=True, text=True, timeout=10)
        assert result.returncode == 0, result.stderr


def test_image_is_of_this_version(manifests, bin_dir):
    version = subprocess.run([bin_dir / "kv-compressd", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert daemon_of(pod_of(manifests))["image"].endswith(f"/kv-compressd:{version}")


def test_time_and_memory_suffice(manifests):
    pod = pod_of(manifests)
    daemon = daemon_of(pod)
    given = arguments(daemon)
    pause = daemon.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= pause + seconds(given["drain-timeout"]) + 5
    shared = [quantity(volume["emptyDir"]["sizeLimit"]) for volume in pod.get("volumes", [])
              if volume["emptyDir"].get("medium") == "Memory"]
    assert quantity(daemon["resources"]["limits"]["memory"]) >= quantity(given["memory-budget"]) + sum(shared) + OVERHEAD
    assert daemon["resources"]["limits"]["cpu"] == given["threads"]


def test_nobody_has_rights_to_spare(manifests):
    pod = pod_of(manifests)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("folder", FOLDERS[:3])
def test_ports_and_labels_meet(repository, folder):
    manifests = resolve(repository / "deploy/kubernetes" / folder)
    (deployment,) = of_kind(manifests, "Deployment")
    daemon = daemon_of(pod_of(manifests))
    given = arguments(daemon)
    ports = {port["name"]: port["containerPort"] for port in daemon["ports"]}
    assert ports == {name: int(given[flag].rsplit(":", 1)[1]) for name, flag in
                     (("grpc", "listen"), ("metrics", "metrics-listen"))}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert daemon[probe]["grpc"]["port"] == ports["grpc"]
    assert deployment["spec"]["template"]["metadata"]["labels"] == NAME
    assert deployment["spec"]["selector"]["matchLabels"] == NAME
    services = {service["metadata"]["name"]: service for service in of_kind(manifests, "Service")}
    assert services["kv-compressd-headless"]["spec"]["clusterIP"] == "None"
    for service in services.values():
        assert service["spec"]["selector"] == NAME
        assert all(port["targetPort"] in ports and port["port"] == ports[port["targetPort"]]
                   for port in service["spec"]["ports"])
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"] == NAME
    (policy,) = of_kind(manifests, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == NAME
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["ingress"]] == [ports["grpc"], ports["metrics"]]
    for monitor in of_kind(manifests, "ServiceMonitor"):
        # One service with the port of metrics: each daemon is scraped once, by the job that the rules name.
        assert monitor["spec"]["selector"]["matchLabels"] == NAME
        (endpoint,) = monitor["spec"]["endpoints"]
        assert [name for name, service in services.items() if service["metadata"]["labels"] == NAME and
                endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]] == ["kv-compressd-headless"]
        assert NAME[monitor["spec"]["jobLabel"]] == "kv-compressd"


def test_the_autoscaler_alone_says_how_many(repository):
    manifests = resolve(repository / "deploy/kubernetes/overlays/autoscaling")
    (autoscaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(manifests, "Deployment")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    pods = autoscaler["spec"]["metrics"][0]["pods"]
    adapter = yaml.safe_load((repository / "deploy/kubernetes/prometheus-adapter.yaml").read_text())
    assert adapter["rules"]["custom"][0]["seriesQuery"].startswith(pods["metric"]["name"] + "{")
    budget = quantity(arguments(daemon_of(pod_of(manifests)))["memory-budget"])
    assert 2 * quantity(pods["target"]["averageValue"]) == budget


def test_the_sidecar_shares_socket_and_memory(repository):
    pod = pod_of(resolve(repository / "deploy/kubernetes/sidecar"))
    daemon, (client,) = daemon_of(pod), pod["containers"]
    assert daemon["restartPolicy"] == "Always"
    assert daemon["volumeMounts"] == client["volumeMounts"]
    mounts = {mount["mountPath"] for mount in daemon["volumeMounts"]}
    socket = arguments(daemon)["listen"].removeprefix("unix:")
    assert mounts == {"/dev/shm", socket.rsplit("/", 1)[0]}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
