#!/usr/bin/env python3
"""`make deploy`: the new release, replica by replica, under traffic; back to the old one by itself when it is no good.

Each new replica must be healthy before an old one is asked to leave. The old ones are stopped (they drain: see
BI_DRAIN_SECONDS) but kept until the last new one serves, so that going back is starting them again. Then come the other
services whose image, settings or mounted files changed. `--no-build` takes the images as they are. BI_DEPLOY_SECONDS
(120): how long a new replica may take to become healthy.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from exchange import refuse_interrupted
from mounted import PRODUCTION, is_production_edge, read_anew
from stack_tools import (
    SERVICE_LABEL,
    STATE,
    Failure,
    Json,
    Voice,
    alone,
    bring_up,
    compose,
    configuration,
    containers,
    docker,
    end_by_exception,
    run,
    seconds,
    wait_healthy,
)
from volumes import volumes_of

voice = Voice("deploy")
# The edge asks its replicas every second (infra/caddy/production.caddy): so long until it has found a new one.
EDGE_FINDS_SECONDS = 3.0
CHECK_EDGE = ("caddy", "adapt", "--config", PRODUCTION, "--adapter", "caddyfile")


@dataclass
class Release:
    """The exchange of one set of replicas for another: what was there, what is new, and who was stopped already."""

    project: str
    image: str
    old: list[Json]
    new: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def create(self, wanted: int) -> None:
        """The new containers beside the old, not yet started."""
        before = {container["Id"] for container in containers(self.project, "query", every=True)}
        try:
            compose("create", "--no-build", "--no-recreate", "--scale", f"query={len(before) + wanted}", "query")
        finally:  # some are there even when it failed
            after = containers(self.project, "query", every=True)
            self.new = [container["Id"] for container in after if container["Id"] not in before]

    def replace(self, within_seconds: float) -> None:
        """One by one. Raises `Failure` when a new replica does not become healthy."""
        leaving = [container["Id"] for container in self.old]
        for number, replica in enumerate(self.new, start=1):
            started = time.monotonic()
            docker("start", replica)
            wait_healthy(replica, within_seconds)
            voice.say(f"new replica {number} of {len(self.new)} is healthy after {time.monotonic() - started:.0f} s")
            if leaving:
                time.sleep(EDGE_FINDS_SECONDS)
                self._stop(leaving.pop(0))
        for container in leaving:
            self._stop(container)

    def _stop(self, container: str) -> None:
        self.stopped.append(container)
        started = time.monotonic()
        docker("stop", container)
        voice.say(
            f"old replica {len(self.stopped)} of {len(self.old)} has drained in {time.monotonic() - started:.0f} s"
        )

    def finish(self) -> None:
        """Forget the old ones."""
        if self.old:
            docker("rm", *(container["Id"] for container in self.old))

    def roll_back(self) -> None:
        """The old replicas, all of them; none of the new."""
        if self.old[0]["Config"]["Image"] == self.image:
            # First: the name must mean the release that serves, or the next start would take the bad one again.
            docker("tag", self.old[0]["Image"], self.image)
        for container in self.stopped:
            docker("start", container)
        for container in self.stopped:
            wait_healthy(container, 120)
        if self.stopped:
            time.sleep(EDGE_FINDS_SECONDS)
        # Those that serve drain; one that never did would only be waited for.
        serving = [c["Id"] for c in containers(self.project, "query") if c["Id"] in self.new and is_healthy(c)]
        if serving:
            docker("stop", *serving)
        if self.new:
            docker("rm", "-f", *self.new)


def is_healthy(container: Json) -> bool:
    """As docker's own check of it says."""
    return bool(container["State"].get("Health", {}).get("Status") == "healthy")


def main(arguments: list[str]) -> int:
    """Deploy; the exit code: 0 all of the new release serves, 1 the old one still does, 2 the new one does, but something
    beside the replicas is not as it should be.
    """
    end_by_exception()
    resolved = configuration()
    project = str(resolved["name"])
    with alone(project, "deploy"):
        return deploy(project, resolved["services"], volumes_of(resolved), build="--no-build" not in arguments)


def deploy(project: str, services: dict[str, Json], volumes: dict[str, str], *, build: bool) -> int:
    """Images, one-shots, replicas, the rest; in this order, because each needs the one before.

    Never by one `compose up` of everything: compose recreates whatever depends on what it recreated, all replicas and the
    edge at once among it. And never with `--no-deps`, under which it notes another fingerprint of a service's settings
    and takes them for changed at the next start.
    """
    old, query = containers(project, "query"), services["query"]
    within_seconds = seconds("BI_DEPLOY_SECONDS", "120")
    if not old:
        start(project, query, volumes, build=build)
        return 0
    one_shots = [name for name, service in services.items() if service.get("restart") == "no"]
    release = Release(project, str(query["image"]), old)
    wanted = int(query.get("deploy", {}).get("replicas", 1))
    try:
        if build:  # from here on the image's name may mean the new release
            get_images(query)
        check_edge(project)
        for name in sorted(one_shots, key=lambda name: len(services[name].get("depends_on") or {})):
            run_one_shot(project, name)
        voice.say(f"{len(old)} replica(s) of {old[0]['Image'][7:19]} -> {wanted} of {query['image']}")
        release.create(wanted)
        release.replace(within_seconds)
    except BaseException as error:
        go_back(release, error)
        if not isinstance(error, Failure):
            raise
        voice.fail(
            "not deployed; the old release serves on, nobody was refused. See the lines above for the reason, mend it, and"
            " deploy again. If you named a new BI_QUERY_IMAGE in .env, put the former one back until then."
        )
    others = [name for name in services if name not in {"query", *one_shots}]
    behind = [name for name in others if "query" in (services[name].get("depends_on") or {})]
    try:
        release.finish()
        update(project, [name for name in others if name not in behind], behind)
    except Failure as failure:
        voice.fail(
            f"THE NEW RELEASE SERVES: all its replicas are healthy. But not every other service is as it should be:"
            f"\n{failure}\nmend that, then make deploy again (or make up). Back to the former release:"
            " check it out, and make deploy.",
            code=2,
        )
    voice.say("done: every service is healthy")
    return 0


def go_back(release: Release, error: BaseException) -> None:
    """The old release. Raises `Failure` with the state and the reason when that fails, too."""
    voice.say("GOING BACK to the release that served before" + (f": {error}" if str(error) else ""))
    try:
        release.roll_back()
    except Failure as failure:
        raise Failure(
            f"could not go back in full: {failure}\nOld replicas that were stopped: docker start"
            f" {' '.join(name[:12] for name in release.stopped) or '(none)'}; then make ps, and make up."
            f" Why it went back: {error}"
        ) from failure


def get_images(query: Json) -> None:
    """Pulled when the service's image is in a registry, built here when it is not."""
    if query.get("pull_policy") not in ("never", None):
        voice.say(f"pulling {query['image']}")
        compose("pull", "--quiet", "query")
        return
    voice.say("building the service's image")
    run("infra/images.sh", *(["--own"] if (STATE / "images.env").exists() else []), timeout=3600)


def check_edge(project: str) -> None:
    """That the running edge can read its files as they are now, before anything is changed."""
    for edge in filter(is_production_edge, containers(project, "edge")):
        docker("exec", edge["Id"], *CHECK_EDGE)


def start(project: str, query: Json, volumes: dict[str, str], *, build: bool) -> None:
    """All of it, where no replica runs that could serve on. Raises `Failure` when it is not healthy."""
    if build:
        get_images(query)
    refuse_interrupted(str(query["image"]), volumes)
    voice.say("nothing runs yet: a plain start")
    bring_up(project, seconds("BI_UP_SECONDS", "300"))
    read_anew(project, voice)


def run_one_shot(project: str, name: str) -> None:
    """Run it with the new release, as the container that `compose up` would look for. Raises `Failure` when it fails."""
    voice.say(f"running {name} with the new release")
    compose("up", "-d", "--no-build", name, timeout=3600)
    found = containers(project, name, every=True)
    if len(found) != 1:
        raise Failure(f"{name} has {len(found)} containers and should have one: docker compose rm {name}")
    if docker("wait", found[0]["Id"], timeout=3600).strip() != "0":
        log = run("sh", "-c", f"docker logs --tail 12 {found[0]['Id']} 2>&1", check=False)
        raise Failure(f"{name} failed, nothing was replaced; its last words:\n{log}")


def update(project: str, *groups: list[str]) -> None:
    """Replace those of the other services whose image or settings changed, and restart those whose mounted files did; all
    must be healthy in the end.
    """
    before = {container["Id"] for container in containers(project)}
    within_seconds = seconds("BI_UP_SECONDS", "300")
    for services in filter(None, groups):
        bring_up(project, within_seconds, *services, timeout=within_seconds + 600)
    after = containers(project)
    replaced = sorted({str(c["Config"]["Labels"][SERVICE_LABEL]) for c in after if c["Id"] not in before})
    voice.say(f"replaced besides: {', '.join(replaced)}" if replaced else "no other service had to be replaced")
    read_anew(project, voice)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        voice.fail(str(failure))
