"""Describe a version by tags: the jobs it was trained on, its scores, and the run of each network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from calmlflow.hst.ladder import LADDER
from calmlflow.results.scores import headlines
from calmlflow.settings import TARGETS


@dataclass(frozen=True)
class Lineage:
    """Origin of a version; what is not known is 0, None or absent."""

    data: str  # URI of the jobs
    jobs: int  # that it was trained on
    newest_job: int  # timestamp, epoch seconds
    seed: int | None
    scores: Mapping[str, Mapping[str, float]]  # target -> score -> value, of the version's own held-out jobs
    runs: Mapping[str, str]  # network -> id of the run that trained it
    taken_from: Mapping[str, str] = field(default_factory=dict)  # network -> version of the bundle that it comes from
    # The scores of networks alone, which answer without evidence, where they are not those of the bundle.
    alone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    split: str = ""  # what the held-out jobs were held out by

    def origins(self, networks: Sequence[str]) -> dict[str, str]:
        """Where these networks come from: ``run.{network}``, and ``part.{network}`` for those that were taken over."""
        found = {f"run.{network}": self.runs[network] for network in networks if network in self.runs}
        parts = {f"part.{name}": f"version {self.taken_from[name]}" for name in networks if name in self.taken_from}
        return {**found, **parts}

    def tags(self, networks: Sequence[str]) -> dict[str, str]:
        """Tags of a version that holds these networks, with ``score.{target}.{score}`` of the headline scores."""
        found = {
            "data": self.data,
            "jobs": str(self.jobs),
            "newest_job": str(self.newest_job),
            "ladder": LADDER.version,
        }
        if self.seed is not None:
            found["seed"] = str(self.seed)
        if self.split:
            found["split"] = self.split
        found |= self.origins(networks)
        for network in networks:
            target = TARGETS[network]
            scores = (self.alone if len(networks) == 1 and target in self.alone else self.scores).get(target, {})
            found |= {f"score.{target}.{name}": f"{scores[name]:.6g}" for name in headlines(target) if name in scores}
        return found
