"""Make the stack's secrets at its first start; leave those that exist alone.

Runs as a one-shot container before anything else. Each secret is one file of the `secrets` volume, owned by the user
of the container that reads it and readable by that user alone: compose's own file secrets would need files made
before `docker compose up`, and ignore owner and mode. To change a secret delete its file and recreate its readers.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

from bi_query.access import Role
from bi_query.keys import KeyFile

FOLDER = Path(os.environ.get("BI_SECRETS_FOLDER", "/run/bi-secrets"))
KEYS = Path(os.environ.get("BI_KEYS_FOLDER", "/run/bi-keys"))
# The production edge's volume (certificates, its ACME account): made root's by the engine, and the edge is not root.
EDGE_FOLDER = os.environ.get("BI_EDGE_FOLDER")

# Users (uid, gid) of the containers, as compose.yaml and the images have them.
QUERY = (10001, 10001)
REDIS = (999, 1000)
REDIS_EXPORTER = (59000, 59000)
GRAFANA = (472, 0)
EDGE = (65534, 65534)

# What the service needs of Redis: values, expiry, scripts (rate limit), publish/subscribe. Nothing that reads or
# changes the server itself, lists all keys at once or wipes it.
SERVICE_RIGHTS = "~* &* +@all -@admin -@dangerous +info"
# What the exporter asks for (its own documentation's list), on no data.
EXPORTER_RIGHTS = (
    "resetkeys resetchannels -@all +ping +info +client|setname +client|list +config|get +slowlog +latency +memory"
    " +select +cluster|info"
)


def make(name: str, content: str, owner: tuple[int, int]) -> bool:
    """Write a secret once; returns whether it was made now. The file appears whole or not at all."""
    path = FOLDER / name
    if path.exists():
        return False
    draft = FOLDER / f".{name}.new"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chown(draft, *owner)
    draft.rename(path)
    return True


def make_redis() -> list[str]:
    """The users of Redis and each user's password, made together: Redis itself holds only their hashes."""
    names = ["redis-password", "redis-admin-password", "redis-exporter.json", "redis-users.acl"]
    if all((FOLDER / name).exists() for name in names):
        return []
    for name in names:  # a half-made set (volume restored in part, say) is of no use: passwords and hashes must match
        (FOLDER / name).unlink(missing_ok=True)
    service, admin, exporter = (secrets.token_urlsafe(32) for _ in range(3))

    def hashed(password: str) -> str:
        return hashlib.sha256(password.encode()).hexdigest()

    make("redis-password", service, QUERY)
    make("redis-admin-password", admin, REDIS)
    make("redis-exporter.json", json.dumps({"redis://exporter@redis:6379": exporter}), REDIS_EXPORTER)
    users = [
        f"user default on sanitize-payload #{hashed(service)} {SERVICE_RIGHTS}",
        f"user exporter on sanitize-payload #{hashed(exporter)} {EXPORTER_RIGHTS}",
        f"user admin on sanitize-payload #{hashed(admin)} ~* &* +@all",
    ]
    make("redis-users.acl", "\n".join(users) + "\n", REDIS)
    return names


def make_first_key() -> list[str]:
    """An administrator's API key, in plain text for `make password` and as a hash in the service's key file."""
    file = KeyFile(KEYS / "keys.json")
    if file.path.exists():
        return []
    (FOLDER / "api-key").unlink(missing_ok=True)  # of a key file that is gone: no service would accept it
    [key] = file.add("first", Role.ADMIN)
    make("api-key", key, QUERY)
    # The folder last: this container may give files away, but not write into what is another user's.
    for path in (*KEYS.iterdir(), KEYS):
        os.chown(path, *QUERY)
    return ["api-key"]


def main() -> int:
    """Make what is missing and say what was made (names only)."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = make_redis() + make_first_key()
    for name, owner in (
        ("grafana-admin-password", GRAFANA),
        ("grafana-secret-key", GRAFANA),
    ):
        if make(name, secrets.token_urlsafe(32), owner):
            made.append(name)
    if EDGE_FOLDER:
        os.chown(EDGE_FOLDER, *EDGE)
    sys.stdout.write(f"secrets: made {', '.join(made)}\n" if made else "secrets: all there\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
