#!/usr/bin/env python3
"""Checks licences, banned crates and sources by `.deny.toml`, where cargo-deny is not installed.

Advisories are left to `cargo deny check advisories`, which needs its database from the network.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def satisfied(expression: str, allowed: set[str]) -> bool:
    """Whether the SPDX expression can be met with the allowed licences alone.

    `A/B` is the older way of writing `A OR B`; AND binds tighter than OR, WITH tighter than both.
    """
    tokens = re.findall(r"[()]|[^\s()/]+", expression.replace("/", " OR "))

    def either() -> bool:
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = both() or result
        return result

    def both() -> bool:
        result = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            result = either()
            if tokens.pop(0) != ")":
                raise ValueError(expression)
            return result
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    try:
        result = either()
    except (IndexError, ValueError):
        return False
    return result and not tokens


def self_test() -> None:
    allowed = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}
    for expression, expected in {
        "MIT": True,
        "GPL-3.0": False,
        "GPL-3.0 OR MIT": True,
        "GPL-3.0/MIT": True,
        "MIT AND GPL-3.0": False,
        "MIT AND (GPL-3.0 OR ISC)": True,
        "(MIT OR ISC) AND GPL-3.0": False,
        "GPL-3.0 AND MIT OR ISC": True,
        "Apache-2.0": False,
        "Apache-2.0 WITH LLVM-exception": True,
        "MIT MIT": False,
        "(MIT": False,
        "": False,
    }.items():
        if satisfied(expression, allowed) is not expected:
            raise AssertionError(f"{expression!r} should be {expected}")


def faults(config: dict, packages: list[dict]) -> list[str]:
    """Everything that `.deny.toml` forbids in the tree, one line each."""
    licences = config["licenses"]
    allowed = set(licences["allow"])
    banned = {
        entry.get("name") or entry.get("crate"): entry.get("reason", "banned")
        for entry in config["bans"]["deny"]
    }
    allowed_git = set(config["sources"].get("allow-git", []))
    registries = {p["source"] for p in packages if (p["source"] or "").startswith(("registry+", "sparse+"))}

    found = []
    for package in packages:
        label = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is None:
            if not licences.get("private", {}).get("ignore"):
                found.append(f"{label}: a package of the workspace without a public licence")
            continue
        if package["name"] in banned:
            found.append(f"{label}: banned: {banned[package['name']]}")
        if not package["license"]:
            found.append(f"{label}: names no licence")
        elif not satisfied(package["license"], allowed):
            found.append(f"{label}: licence {package['license']} is not allowed")
        if source.startswith("git+") and source.removeprefix("git+").split("?")[0].split("#")[0] not in allowed_git:
            found.append(f"{label}: unknown git source {source}")
    if len(registries) > 1:
        # Cargo's own is the one that is allowed, so a second is unknown.
        found.append(f"more than one registry: {', '.join(sorted(registries))}")
    return found


def main() -> int:
    self_test()
    config = tomllib.loads((ROOT / ".deny.toml").read_text(encoding="utf-8"))
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    packages = json.loads(metadata.stdout)["packages"]
    found = faults(config, packages)
    for line in found:
        print(line, file=sys.stderr)
    print(f"{len(packages)} packages, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
