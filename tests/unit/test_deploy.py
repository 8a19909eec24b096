"""The files in deploy/: Kubernetes' own schemas, and what they say of our settings."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gradcam_server.cli.watch import watch
from gradcam_server.config.file import read_config_file
from gradcam_server.config.settings import ServeConfig
from gradcam_server.transport.security.listening import check_listening

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes" / "gradcam.yaml"
WATCHER = ROOT / "deploy" / "kubernetes" / "watch.yaml"
RAY = ROOT / "deploy" / "ray"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def documents(path: Path = MANIFESTS) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents() if one["kind"] == kind]
    return found


@pytest.mark.parametrize(
    "document",
    documents() + documents(WATCHER),
    ids=lambda one: f"{one['kind']} {one['metadata']['name']}",
)
def test_manifests_fit_kubernetes_schemas(document: dict[str, Any]) -> None:
    """No field is misspelt or of the wrong type."""
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_schema_check_finds_what_is_wrong() -> None:
    """A negative control: an unknown field is refused."""
    document = of_kind("Deployment") | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_config_map_is_a_configuration(tmp_path: Path) -> None:
    """The server would read it, and its ports are the container's."""
    text = of_kind("ConfigMap")["data"]["gradcam.toml"]
    (tmp_path / "gradcam.toml").write_text(text)
    values = read_config_file(tmp_path / "gradcam.toml")
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": values["port"], "http": values["http_port"]}
    service = {port["name"]: port["targetPort"] for port in of_kind("Service")["spec"]["ports"]}
    assert service.keys() == ports.keys()
    del values["model"]
    config = ServeConfig(**values)
    check_listening(config)
    assert config.tls_certificate, "only the HTTP port is meant to be plain text"
    assert config.token_file


def test_a_pod_has_time_to_drain() -> None:
    """SIGKILL comes after the pause before SIGTERM and the whole drain."""
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    pause_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_s = tomllib.loads(of_kind("ConfigMap")["data"]["gradcam.toml"])["drain_timeout_s"]
    assert drain_s == ServeConfig().drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > pause_s + drain_s + 5


def test_the_watcher_has_options_that_exist() -> None:
    """Its arguments are read without an error, with the variables of its Secret."""
    secret, deployment = documents(WATCHER)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments = container["args"][1:]
    for name, value in secret["stringData"].items():
        arguments = [one.replace(f"$({name})", value) for one in arguments]
    assert not any("$(" in one for one in arguments)
    params = watch.make_context("watch", arguments).params
    assert params["sources"][0].startswith("door=rtsp://")
    (port,) = container["ports"]
    assert params["metrics_port"] == port["containerPort"]
    service = of_kind("Service")
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert params["server"] == f"dns:///{address}"


def ray_documents() -> tuple[dict[str, Any], dict[str, Any]]:
    service, policy = yaml.safe_load_all((RAY / "rayservice.yaml").read_text("utf-8"))
    return service, policy


def ray_pods() -> list[dict[str, Any]]:
    cluster = ray_documents()[0]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]


def test_what_kuberay_gives_kubernetes_fits_its_schemas() -> None:
    """The pods, the Service and the policy; KubeRay's own schema is not at hand."""
    service, policy = ray_documents()
    pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in ray_pods()]
    inner = {"apiVersion": "v1", "kind": "Service", **service["spec"]["serveService"]}
    for document in (*pods, inner, policy):
        named = {**document, "metadata": {"name": "one", **document["metadata"]}}
        kubernetes_validate.validate(named, kubernetes_validate.latest_version(), strict=True)


def test_kuberay_serves_the_configuration_that_we_ship() -> None:
    """But for the number of replicas, and the address that KubeRay asks for health."""
    ours = yaml.safe_load((RAY / "serve_config.yaml").read_text("utf-8"))
    theirs = yaml.safe_load(ray_documents()[0]["spec"]["serveConfigV2"])
    for config in (ours, theirs):
        del config["http_options"]["host"]
        scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
        for key in ("min_replicas", "initial_replicas", "max_replicas"):
            del scaling[key]
    assert ours == theirs


def test_the_ports_of_ray_pods_are_those_of_the_configuration() -> None:
    """The proxies' ports are opened, served, and only gRPC's is open to all."""
    service, policy = ray_documents()
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ports = {"grpc": config["grpc_options"]["port"], "serve": config["http_options"]["port"]}
    served = service["spec"]["serveService"]["spec"]["ports"]
    assert {port["name"]: port["targetPort"] for port in served} == ports
    for pod in ray_pods():
        (container,) = pod["spec"]["containers"]
        opened = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.items() <= opened.items()
        limits = {one["name"]: one["value"] for one in container["env"]}
        limit = limits["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"]
        assert int(limit) == ServeConfig().max_message_bytes
    to_all = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert to_all == [[{"protocol": "TCP", "port": ports["grpc"]}]]


def test_ray_pods_have_time_to_drain() -> None:
    """SIGKILL comes after the replicas' own time."""
    config = yaml.safe_load(ray_documents()[0]["spec"]["serveConfigV2"])
    (deployment,) = config["applications"][0]["deployments"]
    worker = ray_pods()[1]["spec"]
    assert worker["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"] + 5


@pytest.mark.parametrize("name", ["serve_config.yaml", "rayservice.yaml"])
def test_ray_can_read_its_configurations(name: str) -> None:
    """No key is misspelt: Ray itself passes over what it does not know."""
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    scaling = pytest.importorskip("ray.serve.config").AutoscalingConfig
    (config, *_) = yaml.safe_load_all((RAY / name).read_text("utf-8"))
    if "spec" in config:
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    schema.ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    for table, kind in (
        (config, schema.ServeDeploySchema),
        (config["http_options"], schema.HTTPOptionsSchema),
        (config["grpc_options"], schema.gRPCOptionsSchema),
        (application, schema.ServeApplicationSchema),
        (deployment, schema.DeploymentSchema),
        (deployment["ray_actor_options"], schema.RayActorOptionsSchema),
        (deployment["autoscaling_config"], scaling),
    ):
        assert table.keys() <= kind.model_fields.keys()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
@pytest.mark.parametrize("path", UNITS, ids=lambda one: one.name)
def test_the_units_are_units(path: Path, tmp_path: Path) -> None:
    """Systemd itself finds nothing to complain of but the program, which is not installed."""
    unit = tmp_path / path.name.replace("@", "@cameras")
    unit.write_text(
        path.read_text("utf-8").replace("/opt/gradcam/bin/gradcam", shutil.which("true") or "")
    )
    ended = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in ended.stderr.splitlines() if unit.name in line]
    assert (ended.returncode, about_ours) == (0, [])
