"""Which SPs there are, which are up, and who of them is master."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from vswitchd.election import core as election
from vswitchd.errors import Kind, VsError
from vswitchd.model.invariants import check_sp_name
from vswitchd.model.objects import SpId, Volume
from vswitchd.model.view import Complaint, Trouble
from vswitchd.ports import Clock, Processor, ProcessorRecord, Processors, Store
from vswitchd.restructure.away import lost

#: Seconds between heartbeats, and without one until an SP counts as down.
HEARTBEAT = 0.5
DOWN_AFTER = 5.0
#: So many SPs of other clusters are remembered.
STRANGERS = 1000
CONTENT = Complaint()


class Registry:
    """SPs by name, with their election."""

    def __init__(
        self,
        store: Store,
        processors: Processors,
        clock: Clock,
        log: FilteringBoundLogger,
        joined: Callable[[SpId], None],
    ) -> None:
        """`joined` is told of every SP that registers."""
        self._store = store
        self._processors = processors
        self._clock = clock
        self._log = log
        self._joined = joined
        self._heard: dict[SpId, float] = {}
        self._changing = asyncio.Lock()
        self._telling: set[asyncio.Task[None]] = set()
        self.records: dict[SpId, ProcessorRecord] = {}
        #: SPs of other clusters that have come while this controller had none of its own, with
        #: the clusters that they belong to: it may be theirs, with its store lost.
        self.strangers: dict[SpId, tuple[ProcessorRecord, str]] = {}
        #: SPs that are known to be lost, until they register again.
        self.lost: set[SpId] = set()
        #: What SPs complain of.
        self.complaints: dict[SpId, Complaint] = {}
        self.cluster = ""
        self.election = election.State()

    async def start(self) -> None:
        """Reads who is known; nobody is up until heard."""
        self.cluster = await self._store.cluster_id()
        self.records = {record.sp: record for record in await self._store.processors()}
        await self._elect(election.ControllerStarted(await self._store.term()))

    # What SPs say.

    async def register(self, record: ProcessorRecord, cluster: str) -> None:
        """An SP joins, or comes back."""
        check_sp_name(record.sp)
        if cluster and cluster != self.cluster:
            if record.vsm_address and not self.records and len(self.strangers) < STRANGERS:
                self.strangers[record.sp] = record, cluster
            raise VsError(
                "VS6030",
                Kind.UNSAFE,
                f"SP {record.sp} belongs to cluster {cluster}, this is {self.cluster}; "
                "start it with the right --controller, or with an empty --state; if this "
                "controller has lost its store, `vswitchctl recover`",
            )
        known = self.records.get(record.sp)
        alive = known is not None and self.is_up(record.sp)
        if known is not None and alive and known.incarnation != record.incarnation:
            self._log.info("processor_restarted", sp=record.sp)
        async with self._changing:
            if record.vsm_address and known != record:
                await self._store.put_processor(record)
                self.records[record.sp] = record
        if not record.vsm_address:
            # Its first contact, to learn the cluster's id: it will register once it serves.
            return
        self._heard[record.sp] = self._clock.monotonic()
        self.lost.discard(record.sp)
        await self._elect(election.SpUp(record.sp))
        self._joined(record.sp)

    def heartbeat(self, sp: SpId, incarnation: str, complaint: Complaint = CONTENT) -> bool:
        """False if the SP has to register again."""
        record = self.records.get(sp)
        if record is None or record.incarnation != incarnation or sp not in self.election.up:
            return False
        self._heard[sp] = self._clock.monotonic()
        if complaint == CONTENT:
            self.complaints.pop(sp, None)
        else:
            self.complaints[sp] = complaint
        return True

    async def adopt(self, cluster: str) -> None:
        """Becomes the controller of a cluster whose store is lost. Its SPs register again by
        themselves."""
        async with self._changing:
            await self._store.adopt_cluster(cluster)
            self.cluster = cluster
            self.strangers.clear()

    async def lose(self, sp: SpId) -> None:
        """The SP is lost; it is up again when it registers again."""
        self._log.warning("processor_lost", sp=sp)
        self.lost.add(sp)
        self.complaints.pop(sp, None)
        await self._elect(election.SpLost(sp))

    async def forget(self, sp: SpId) -> None:
        """The SP is no part of the cluster any more."""
        async with self._changing:
            await self._store.delete_processor(sp)
            self.records.pop(sp, None)
            self._heard.pop(sp, None)
            self.lost.discard(sp)
        await self._elect(election.SpDown(sp))

    # What others ask.

    def trouble(self, volume: Volume) -> Trouble:
        """What SPs complain of in a volume, but for legs that are away. Legs fail by the word of
        its owner: who was it before may have been cut off from all of them."""
        present = frozenset(t1.id for t1 in volume.t1s) - lost(volume.root)
        failing = self.complaints.get(volume.owner, CONTENT).failing
        doubtful = (
            t1
            for one in self.complaints.values()
            for t1, epoch in one.doubtful.items()
            if epoch >= volume.epoch
        )
        return Trouble(present.intersection(failing), present.intersection(doubtful))

    def is_up(self, sp: SpId) -> bool:
        """Heard lately."""
        heard = None if sp in self.lost else self._heard.get(sp)
        return heard is not None and self._clock.monotonic() - heard < DOWN_AFTER

    def silent(self, sp: SpId) -> float | None:
        """Seconds since it was heard; None if it was not, in this controller's life."""
        heard = self._heard.get(sp)
        return None if heard is None else self._clock.monotonic() - heard

    @property
    def up(self) -> list[SpId]:
        """All that are up."""
        return sorted(sp for sp in self.records if self.is_up(sp))

    @property
    def master(self) -> SpId | None:
        """The SP whose MVSM is active."""
        return self.election.leader

    def record(self, sp: SpId) -> ProcessorRecord:
        """VsError if there is no such SP."""
        if sp not in self.records:
            known = ", ".join(sorted(self.records)) or "none"
            raise VsError("VS2040", Kind.NOT_FOUND, f"there is no SP {sp}; known SPs: {known}")
        return self.records[sp]

    def processor(self, sp: SpId) -> Processor:
        """A client whose calls carry the term of now."""
        return self._processors.connect(self.record(sp), self.cluster, self.election.term)

    @property
    def managers(self) -> dict[SpId, str]:
        """Where SPs' VSMs are."""
        return {sp: record.vsm_address for sp, record in self.records.items()}

    @property
    def peers(self) -> dict[SpId, str]:
        """Peer addresses."""
        return {sp: record.peer_address for sp, record in self.records.items()}

    # The election.

    async def run(self) -> None:
        """Looks once a second who is down."""
        while True:
            await self._clock.sleep(HEARTBEAT)
            try:
                for sp in sorted(self.election.up):
                    if not self.is_up(sp):
                        self._log.warning("processor_down", sp=sp)
                        await self._elect(election.SpDown(sp))
                await self._elect(election.Tick())
            except VsError as error:
                self._log.error("election_failed", error=str(error))

    async def _elect(self, event: election.Event) -> None:
        async with self._changing:
            events: list[election.Event] = [event]
            while events:
                state, effects = election.step(
                    self.election, events.pop(0), self._clock.monotonic()
                )
                for effect in effects:
                    if isinstance(effect, election.RaiseTerm):
                        await self._raise_term(effect.term)
                # Only now: a term that is not durable must never be said to anybody, or the
                # next controller gives the same one to another SP.
                self.election = state
                for effect in effects:
                    events += await self._carry_out(effect)

    async def _raise_term(self, term: int) -> None:
        while await self._store.term() < term:
            await self._store.raise_term()

    async def _carry_out(self, effect: election.Effect) -> list[election.Event]:
        match effect:
            case election.Deactivate(sp):
                # Its answer does not matter, so nobody waits for an SP that may hang.
                task = asyncio.create_task(self._deactivate(sp))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            case election.Activate(sp, term):
                try:
                    await self.processor(sp).activate_mvsm()
                except VsError as error:
                    self._log.warning("activate_failed", sp=sp, term=term, error=str(error))
                    if error.kind is Kind.STALE:
                        seen = await self._seen(sp)
                        return [election.Refused(sp, term, max(seen, term))]
                else:
                    self._log.info("master", sp=sp, term=term)
                    return [election.Activated(sp, term)]
        return []

    async def _deactivate(self, sp: SpId) -> None:
        try:
            await self.processor(sp).deactivate_mvsm()
        except VsError as error:
            self._log.info("deactivate_failed", sp=sp, error=str(error))

    async def _seen(self, sp: SpId) -> int:
        try:
            return (await self.processor(sp).view()).term
        except VsError:
            return 0
