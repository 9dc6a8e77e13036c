"""The doctor's look at files that a container reads as a user of its own: alerts' secrets, a model's key, certificates."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

from findings import Finding, fail, warn


def named_secret(check: str, setting: str, name: str, inside: str, folder: Path, reader: int) -> list[Finding]:
    """A setting names a file as the container sees it, in `inside`, which is `folder` here: that user `reader` gets it."""
    if Path(name).parent != Path(inside):
        said = f"{setting}={name}: not where the container finds it"
        return [fail(check, said, f"{inside}/NAME, of a file in {folder}")]
    wanted = f"put it there, with mode 0400 and owner {reader}, or correct {setting}"
    return secret_file(check, folder / Path(name).name, reader, wanted, said=f"{setting}: ")


def secret_file(check: str, path: Path, reader: int, wanted: str, *, said: str = "", holds: str = "") -> list[Finding]:
    """It is there, not empty, of PEM's kind `holds` if any, and may be read by a container's user; `wanted` is the advice
    where it is missing.

    Only a warning where this user, who may be nobody special, cannot look; or where modes alone speak against it: an access
    list, or an engine that maps users, may let it all the same, and the service itself says so if not.
    """
    try:
        may = allowed(path.parent, 0o1, reader) and allowed(path, 0o4, reader)
        is_file, length = path.is_file(), path.stat().st_size
        text = path.read_text(encoding="ascii", errors="replace") if is_file and holds else ""
    except PermissionError:
        return [warn(check, f"{said}{path} cannot be looked at by this user", "sudo make doctor looks at it, too")]
    except OSError as error:
        return [fail(check, f"{said}{path}: {error.strerror}", wanted)]
    if not is_file or not length:
        return [fail(check, f"{said}{path} is {'empty' if is_file else 'no file'}", wanted)]
    if holds and f"{holds}-----" not in text:
        return [fail(check, f"{said}{path} holds no {holds}", "PEM is needed: -----BEGIN ...-----")]
    if not may:
        advice = f"sudo chown {reader} {shlex.quote(str(path))}; chmod o+x {shlex.quote(str(path.parent))}"
        return [warn(check, f"{said}by its mode {path} may not be read by user {reader}", advice)]
    return []


def allowed(path: Path, wanted: int, reader: int) -> bool:
    """Whether a user, whose group has the same number, has all of these bits, by owner, group and mode. Raises `OSError`."""
    status = path.stat()
    shift = 6 if status.st_uid == reader else 3 if status.st_gid == reader else 0
    return (stat.S_IMODE(status.st_mode) >> shift) & wanted == wanted
