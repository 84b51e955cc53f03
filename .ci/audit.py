"""Reports known vulnerabilities of the packages in requirements.lock, by pip-audit. `make audit`.

Exit status 1 if there are any. Where no database of vulnerabilities can be reached it says so and passes.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
SECONDS = 300


def main() -> int:
    """Run pip-audit and say what it found."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--requirement", str(LOCK)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, subprocess.TimeoutExpired):
        print("No database of vulnerabilities could be reached: nothing was checked.")
        return 0
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        print("The package index has no facts about vulnerabilities: nothing was checked.")
        return 0
    vulnerable = [package for package in checked if package["vulns"]]
    for package in vulnerable:
        for found in package["vulns"]:
            fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"{len(checked)} of {len(packages)} packages were checked, {len(vulnerable)} have known vulnerabilities.")
    return int(bool(vulnerable))


if __name__ == "__main__":
    sys.exit(main())
