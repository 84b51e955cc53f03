"""The lock files: in step with the requirements, and with a hash for whatever is installed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", re.IGNORECASE)


def pins(text: str) -> dict[str, set[str]]:
    """Package -> versions; several where they depend on the platform."""
    found: dict[str, set[str]] = {}
    for match in map(PINNED.match, text.splitlines()):
        if match:
            found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), set()).add(match[2])
    return found


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def requested(lock: str, requirements: str) -> set[str]:
    """Packages that a lock file has because the requirements name them."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return {name for block in blocks if f"-r {requirements}" in block for name in pins(block)}


@pytest.mark.parametrize("name", ["requirements", "requirements-dev", "requirements-container"])
def test_lock_file_has_what_the_requirements_name_and_nothing_that_they_named_once(name: str) -> None:
    wanted, locked = pins(read(f"{name}.txt")), pins(read(f"{name}.lock"))
    assert {package: locked.get(package) for package in wanted} == wanted, "run `make lock`"
    assert requested(read(f"{name}.lock"), f"{name}.txt") == set(wanted), "run `make lock`"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-container.lock"])
def test_every_locked_package_has_hashes_and_no_index_is_named(name: str) -> None:
    text = read(name)
    blocks = [block for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if PINNED.match(block)]
    assert len(blocks) > 50
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text
    assert "--index-url" not in text


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-container.lock"])
def test_developers_have_the_versions_that_a_host_has(name: str) -> None:
    host, developers = pins(read(name)), pins(read("requirements-dev.lock"))
    assert {package: developers.get(package) for package in host} == host


def test_containers_have_what_hosts_have() -> None:
    assert pins(read("requirements.lock")).items() <= pins(read("requirements-container.lock")).items()


@pytest.mark.parametrize("name", ["httpx", "pydantic-settings", "python-dotenv"])
def test_host_has_what_mcp_1_brought_along(name: str) -> None:
    assert name in pins(read("requirements.lock"))
