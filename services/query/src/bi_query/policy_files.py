"""`policies.yaml`: row policies of a catalogue, read and checked."""

from __future__ import annotations

from pathlib import Path

from .errors import SqlRefused
from .front_matter import NAME, CatalogueFile, Problem, read_yaml, validated
from .policies import PLACEHOLDER, Policy
from .sql_guard import SqlGuard


def load_policies(path: Path, problems: list[Problem]) -> dict[str, Policy]:
    """The declared policies by name; what is wrong with one is added to `problems`, with its line."""
    file = read_yaml(path, problems) if path.exists() else None
    if file is None:
        return {}
    guard = SqlGuard({"t"})
    policies = {}
    for name in file.header:
        if not NAME.fullmatch(str(name)):
            problems.append(Problem(path, file.line_of(name), f"{name!r}: a policy's name is lower_snake_case"))
        elif (policy := validated(Policy, file, problems, name)) is not None:
            problems.extend(_faults(file, str(name), policy, guard))
            policies[str(name)] = policy
    return policies


def _faults(file: CatalogueFile, name: str, policy: Policy, guard: SqlGuard) -> list[Problem]:
    faults = []
    for relation, predicate in policy.rows.items():
        line = file.line_of(name, "rows", relation)
        try:
            guard.check(f"SELECT 1 FROM t WHERE {predicate}")  # it closes no bracket that is not its own
            used = guard.check(f"SELECT 1 FROM t WHERE ({predicate}\n)").parameters
        except SqlRefused as refusal:
            faults.append(Problem(file.path, line, f"{name}.rows.{relation}: {refusal.detail}"))
            continue
        # A '$name' in a text literal would be replaced too: then what is found here is more than what the SQL uses.
        if used != set(PLACEHOLDER.findall(predicate)):
            faults.append(Problem(file.path, line, f"{name}.rows.{relation}: write '$' for attributes only"))
        elif unknown := used - policy.attributes.keys():
            faults.append(Problem(file.path, line, f"{name}.rows.{relation}: no attribute ${min(unknown)}"))
    for relation in sorted(set(policy.shared) & policy.rows.keys()):
        faults.append(
            Problem(file.path, file.line_of(name, "shared"), f"{name}: {relation} is both shared and in rows")
        )
    return faults
