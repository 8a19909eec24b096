"""The files in deploy/: Kubernetes' own schemas, and what they say of our settings."""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gradcam_server.config import ServeConfig
from gradcam_server.config_file import read_config_file
from gradcam_server.security.listening import check_listening

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes" / "gradcam.yaml"
UNIT = ROOT / "deploy" / "systemd" / "gradcam.service"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFESTS.read_text("utf-8")))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents() if one["kind"] == kind]
    return found


@pytest.mark.parametrize("document", documents(), ids=lambda one: one["kind"])
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


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_the_unit_is_one(tmp_path: Path) -> None:
    """Systemd itself finds nothing to complain of but the program, which is not installed."""
    unit = tmp_path / UNIT.name
    unit.write_text(
        UNIT.read_text("utf-8").replace("/opt/gradcam/bin/gradcam", shutil.which("true") or "")
    )
    ended = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in ended.stderr.splitlines() if UNIT.name in line]
    assert (ended.returncode, about_ours) == (0, [])
