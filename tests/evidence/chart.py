"""The Helm chart, rendered by helm and checked against Kubernetes' own schemas: `python -m tests.evidence.chart`.

helm: from PATH or the variable HELM. The schemas: `pip install kubernetes-validate` (they come with it). Both are asked
for nothing on the network. The settings that a pod gets are read as the host reads them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.conf import GatewaySettings, read_settings
from tests.support.processes import ROOT

CHART: Final = ROOT / "docs" / "deploy" / "helm" / "gumcp"
VERSIONS: Final = ("1.25", "1.30", "1.35")
SEVERAL: Final = (
    "replicas=3",
    "workers=2",
    "secrets.databaseUrl=postgres://gumcp:pass@db:5432/gumcp",
    "secrets.redisUrl=redis://redis:6379/0",
    "secrets.secretKey=not-a-secret",
)
EVERYTHING: Final = (
    *SEVERAL,
    "ingress.enabled=true",
    "ingress.className=nginx",
    "ingress.tlsSecret=certificate",
    "settings.GUMCP_TRUSTED_PROXIES=10.0.0.0/8",
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=prometheus",
    "serversVolume.persistentVolumeClaim.claimName=mcp-servers",
    "persistence.storageClass=fast",
)
CASES: Final[dict[str, tuple[str, ...]]] = {
    "one pod": (),
    "several pods": SEVERAL,
    "everything": EVERYTHING,
    "a Secret of one's own, no volume": ("replicas=2", "secrets.existing=mine", "persistence.enabled=false"),
}
REFUSED: Final[dict[str, tuple[str, ...]]] = {
    "several pods on SQLite": ("replicas=2",),
    "an ingress that is not trusted": ("ingress.enabled=true",),
}


def render(helm: str, values: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", "gumcp", str(CHART), *(word for value in values for word in ("--set", value))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def problems_of(documents: list[dict[str, Any]]) -> list[str]:
    """What Kubernetes would refuse, by its schemas."""
    import kubernetes_validate

    problems = []
    for document in documents:
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{document['kind']} for {version}: {error.message}")
    return problems


def environment_of(documents: list[dict[str, Any]]) -> dict[str, str]:
    """The environment of a pod: that of the image, the Secret and the container."""
    [pods] = [document for document in documents if document["kind"] == "StatefulSet"]
    [container] = pods["spec"]["template"]["spec"]["containers"]
    image = re.search(r"^ENV ((?:.*\\\n)*.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert image
    environ = dict(word.split("=", 1) for word in image[1].replace("\\\n", " ").split())
    for document in documents:
        if document["kind"] == "Secret":
            environ |= document["stringData"]
    environ |= {entry["name"]: entry.get("value", "10.1.2.3") for entry in container["env"]}
    return {name: value.replace("$(POD_IP)", environ.get("POD_IP", "")) for name, value in environ.items()}


def main() -> int:
    helm = os.environ.get("HELM") or shutil.which("helm")
    if helm is None:
        print("helm is not there: put it into PATH, or its path into HELM.")
        return 1
    failed = False

    def say(claim: str, problems: list[str]) -> None:
        nonlocal failed
        failed |= bool(problems)
        print(f"{'FAILED ' if problems else 'ok     '} {claim}")
        for problem in problems:
            print(f"        {problem}")

    lint = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, timeout=60, check=False)
    say("helm lint --strict", [] if lint.returncode == 0 else lint.stdout.splitlines())
    for name, values in CASES.items():
        rendered = render(helm, values)
        if rendered.returncode:
            say(name, [rendered.stderr])
            continue
        documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
        kinds = ", ".join(sorted(document["kind"] for document in documents))
        say(f"{name}: {kinds}: valid for Kubernetes {', '.join(VERSIONS)}", problems_of(documents))
        settings = GatewaySettings(read_settings(GatewaySettings, environment_of(documents), Path("/no.env")))
        say(f"{name}: its settings start a host", [] if settings.auth_mode == "keys" else ["it is open"])
        several = settings.peer_address == "10.1.2.3:8100"
        budget = "PodDisruptionBudget" in kinds
        is_expected = several == budget == any(value.startswith("replicas") for value in values)
        say(f"{name}: peers and disruption budget", [] if is_expected else [f"{several=}, {budget=}"])
    for name, values in REFUSED.items():
        rendered = render(helm, values)
        say(f"{name}: refused", [] if rendered.returncode else ["it was rendered"])
    print("Not checked: ServiceMonitor against the operator's schema; a start in a cluster.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
