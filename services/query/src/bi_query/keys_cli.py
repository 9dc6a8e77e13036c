"""`bi-query keys add | list | revoke | rotate`: the key file, from the command line."""

from __future__ import annotations

import argparse
import datetime
import sys
from typing import Any

from .access import Role
from .catalogue import load_catalogue
from .catalogue_dir import catalogue_dir
from .errors import ConfigurationError
from .keys import KeyEntry, KeyFile, attributes_of
from .settings import Settings


def add_to(commands: Any) -> None:
    """Add `keys` and its sub-commands to an argument parser."""
    keys = commands.add_parser("keys", help="make, list, revoke and rotate API keys (BI_KEYS_FILE)")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    adding = actions.add_parser("add", help="make a key; it is shown this once")
    adding.add_argument("name", help="whose it is: a person or a program")
    adding.add_argument("--role", type=Role, choices=list(Role), default=Role.READER, help="default: reader")
    adding.add_argument(
        "--rate-limit",
        metavar="COUNT/PERIOD",
        help="instead of BI_RATE_LIMIT (not of BI_RATE_LIMIT_ROUTES), as 600/minute",
    )
    adding.add_argument("--expires-days", type=float, metavar="DAYS", help="default: never")
    adding.add_argument("--policy", help="a row policy of the catalogue's policies.yaml")
    adding.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE", help="a value for the policy")
    adding.add_argument("--count", type=int, default=1, metavar="N", help="N keys with the same name and rights")
    adding.set_defaults(run=_add)
    listing = actions.add_parser("list", help="list the keys; the keys themselves are not stored")
    listing.set_defaults(run=_list)
    revoking = actions.add_parser("revoke", help="end keys, within seconds")
    revoking.add_argument("which", metavar="ID|NAME")
    revoking.set_defaults(run=_revoke)
    rotating = actions.add_parser("rotate", help="make a successor with the same rights; the old key ends later")
    rotating.add_argument("which", metavar="ID|NAME")
    rotating.add_argument("--grace-hours", type=float, default=24.0, metavar="HOURS", help="until it ends; default: 24")
    rotating.set_defaults(run=_rotate)


def _file(settings: Settings) -> KeyFile:
    if settings.keys_file is None:
        raise ConfigurationError("BI_KEYS_FILE is not set: set it to the file that should hold the keys")
    return KeyFile(settings.keys_file)


def _add(settings: Settings, arguments: argparse.Namespace) -> int:
    more: dict[str, Any] = {"rate_limit": arguments.rate_limit}
    if arguments.expires_days is not None:
        if arguments.expires_days <= 0:
            raise ConfigurationError("--expires-days must be more than 0")
        more["expires_at"] = datetime.datetime.now().timestamp() + arguments.expires_days * 86_400
    if arguments.policy is not None:
        policies = load_catalogue(catalogue_dir(settings)).policies
        if arguments.policy not in policies:
            raise ConfigurationError(f"no row policy {arguments.policy!r}; there are: {', '.join(policies) or 'none'}")
        policy = policies[arguments.policy]
        given = attributes_of(arguments.attribute, policy.attributes)
        policy.bind(arguments.policy, given)
        more.update(policy=arguments.policy, attributes=given)
    elif arguments.attribute:
        raise ConfigurationError("--attribute goes with --policy")
    if not 1 <= arguments.count <= 10_000:
        raise ConfigurationError("--count must be 1 to 10000")
    made = _file(settings).add(arguments.name, arguments.role, arguments.count, **more)
    print("\n".join(made))
    print(f"made {len(made)} key(s) of {arguments.name}, role {arguments.role}: shown only now", file=sys.stderr)
    return 0


def _list(settings: Settings, _: argparse.Namespace) -> int:
    rows: list[tuple[str, ...]] = [("ID", "NAME", "ROLE", "LIMIT", "POLICY", "MADE", "ENDS")]
    rows.extend(_row(entry) for entry in _file(settings).read())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(entry: KeyEntry) -> tuple[str, ...]:
    policy = entry.policy or "-"
    if entry.attributes:
        policy += "(" + ", ".join(f"{name}={value}" for name, value in entry.attributes.items()) + ")"
    ends = "-" if entry.expires_at is None else ("ended" if entry.has_expired else _day(entry.expires_at))
    return entry.id, entry.name, entry.role.value, entry.rate_limit or "-", policy, _day(entry.created_at), ends


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%MZ")


def _revoke(settings: Settings, arguments: argparse.Namespace) -> int:
    gone = _file(settings).revoke(arguments.which)
    print(f"revoked {len(gone)} key(s): {', '.join(entry.id for entry in gone)}")
    return 0


def _rotate(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.grace_hours < 0:
        raise ConfigurationError("--grace-hours must be 0 or more")
    made = _file(settings).rotate(arguments.which, arguments.grace_hours * 3600)
    print("\n".join(made))
    print(f"the old key(s) end in {arguments.grace_hours:g} hours; list shows when", file=sys.stderr)
    return 0
