"""Learning what owners have made of their volumes while the controller was away."""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from vswitchd.controller.collector import Collector
from vswitchd.controller.executor import Executor
from vswitchd.controller.registry import Registry
from vswitchd.controller.turns import Turns
from vswitchd.errors import VsError
from vswitchd.model.objects import Volume
from vswitchd.ports import Store
from vswitchd.restructure.alone import succeeds


class Learner:
    """Takes what SPs have recorded into the store, if it is what comes after what is there."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        collector: Collector,
        executor: Executor,
        turns: Turns,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._registry = registry
        self._collector = collector
        self._executor = executor
        self._turns = turns
        self._log = log
        #: The last epochs that could not be learnt, as logged.
        self._told: dict[str, int] = {}

    def is_news(self, volume: Volume) -> bool:
        """True if some SP has recorded what the store does not know."""
        said = (one.ejections.get(volume.id, 0) for one in self._registry.complaints.values())
        return max(said, default=0) > volume.epoch

    async def learn(self, volume: Volume) -> bool:
        """True if the store holds what its owner has made of the volume; False if nothing was
        found that comes after what it holds. An operation that was planned before gives way."""
        async with self._turns.of(volume.id):
            stored = await self._store.volume(volume.id)
            if stored is None:
                return False
            views = await self._collector.collect(volume.id)
            found = [one for view in views.values() for one in view.ejections]
            for ejection in sorted(found, key=lambda one: one.t2.epoch, reverse=True):
                if ejection.t2.volume != stored.id:
                    continue
                target = succeeds(stored, ejection)
                if target is not None:
                    break
            else:
                self._not_known(stored)
                return False
            who, count = target.owner, target.version - stored.version
            why = f"left behind by {who} while the controller was away"
            try:
                await self._store.put_volume(
                    target, expect_version=stored.version, who=who, why=why
                )
            except VsError as error:
                self._log.warning("not_learnt", volume=stored.name, error=str(error))
                return False
            self._executor.overtake(target)
        self._log.info(
            "learnt", volume=target.name, owner=who, version=target.version, ejections=count
        )
        return True

    def _not_known(self, stored: Volume) -> None:
        """What is recorded is no successor: whoever forced the volume has decided against it."""
        if self._told.get(stored.id) != stored.epoch:
            self._told[stored.id] = stored.epoch
            self._log.warning("not_learnt", volume=stored.name, epoch=stored.epoch)
