"""A whole cluster of real processes on loopback: a controller, SPs, file devices, vswitchctl."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import grpc

from tests.e2e.network import Network
from tests.e2e.process import ROOT, Daemon, wait_for
from vswitchd.rpc import (
    cluster_pb2,
    cluster_pb2_grpc,
    common_pb2,
    device_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
    vsm_pb2,
    vsm_pb2_grpc,
)

Q = TypeVar("Q")
A = TypeVar("A")

MIB = 1 << 20
ANY = "127.0.0.1:0"
#: Seconds that one vswitchctl may take; it waits for its operation's end by itself.
CTL = 120.0


@dataclass(frozen=True)
class Ran:
    """What one vswitchctl did."""

    argv: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as JSON."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"vswitchctl {' '.join(self.argv)} -> {self.status}\n{self.out}{self.err}"


class Api:
    """The public services, for probes that would be slow through the command line."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_reconnect_backoff_ms", 500)]
        )
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self.channel)
        self.devices = device_pb2_grpc.DeviceServiceStub(self.channel)
        self.processors = processor_pb2_grpc.ProcessorServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)


class Cluster:
    """A controller and SPs with their state, devices and logs under `root`.

    Use as a context manager: whatever happens, no process is left behind.
    """

    def __init__(
        self,
        root: Path,
        sps: tuple[str, ...] = ("sp-a", "sp-b", "sp-c"),
        network: Network | None = None,
    ) -> None:
        """`network`: with these SPs and the controller as its nodes; None: all on loopback."""
        self.root = root
        self.devices = root / "devices"
        self.devices.mkdir(parents=True)
        self.controller = Daemon(
            "controller",
            root,
            ["controller", "--state", str(root / "controller")],
            {"--listen": ANY, "--metrics": ANY},
        )
        self.sps = {name: self._sp(name) for name in sps}
        self.network = network
        if network:
            for daemon in self.daemons:
                daemon.within = network.within(daemon.name)
                for option in daemon.addresses:
                    daemon.addresses[option] = f"{network.addresses[daemon.name]}:0"

    def _sp(self, name: str) -> Daemon:
        argv = ["sp", "--name", name, "--state", str(self.root / name), "--loops", "2"]
        argv += ["--device-root", str(self.devices)]
        argv += ["--iscsi-portal-group", str(1 + ord(name[-1]) - ord("a"))]
        options = ("--nbd", "--iscsi", "--vsm", "--peer", "--metrics")
        return Daemon(name, self.root, argv, dict.fromkeys(options, ANY))

    @property
    def daemons(self) -> list[Daemon]:
        """Every process, the controller first."""
        return [self.controller, *self.sps.values()]

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Starts the controller, then every SP, and waits until all have joined."""
        self.controller.start()
        for sp in self.sps.values():
            if "--controller" not in sp.argv:
                sp.argv += ["--controller", self.controller.addresses["--listen"]]
                sp.argv += ["--nbd", f"unix:{self.root / sp.name}.sock"]
            sp.launch()
        for sp in self.sps.values():
            wait_for(f"{sp.name} to be ready", sp.ready)
        self.wait_joined()

    def end(self) -> None:
        """Kills whatever still runs."""
        if "api" in self.__dict__:
            self.api.channel.close()
        for daemon in self.daemons:
            daemon.kill()

    def wait_joined(self, *names: str, seconds: float = 30.0) -> None:
        """Waits until the controller calls those SPs (default: all) up, under their present life,
        and one of them is master."""

        def joined() -> bool:
            known = {p.sp: p for p in self.processors()}
            for name in names or self.sps:
                assert known[name].up, f"{name} is down"
                # A restarted SP has its old address: only its incarnation tells that the
                # controller has heard this life and not the one before.
                assert known[name].incarnation == self.sps[name].endpoints["incarnation"]
            return any(p.master and p.up for p in known.values())

        wait_for(f"{', '.join(names or self.sps)} to join", joined, seconds)

    # What people do.

    def ctl(self, *argv: str, status: int | None = 0, seconds: float = CTL) -> Ran:
        """Runs vswitchctl with JSON output; asserts its exit status (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "vswitchd.cli", *self.ctl_options, *argv, "-o", "json"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        ran = Ran(argv, done.returncode, done.stdout, done.stderr)
        assert status is None or ran.status == status, str(ran)
        return ran

    @property
    def ctl_options(self) -> tuple[str, str]:
        """How any vswitchctl finds this cluster."""
        return "--controller", self.controller.addresses["--listen"]

    def add_device(self, sp: str, name: str, size: int = 1024 * MIB, *flags: str) -> Path:
        """Gives an SP a file device of that name (the same name twice: a shared device)."""
        path = self.devices / f"{name}.img"
        argv = ["--sp", sp, "--size", str(size), "--name", name, *flags]
        self.ctl("device", "add", f"file:{path}", *argv)
        return path

    def uri(self, volume: str, sp: str, *, unix: bool = False) -> str:
        """The NBD URI of a volume at an SP."""
        if unix:
            return f"nbd+unix:///{volume}?socket={self.root / sp}.sock"
        return f"nbd://{self.sps[sp].addresses['--nbd']}/{volume}"

    # What the processes say.

    @cached_property
    def api(self) -> Api:
        """A client of the public API (the controller keeps its port over restarts)."""
        return Api(self.controller.addresses["--listen"])

    def status(self) -> cluster_pb2.ClusterStatus:
        """The cluster on one screen."""
        return _ask(self.api.cluster.GetStatus, cluster_pb2.GetStatusRequest())

    def processors(self) -> list[processor_pb2.Processor]:
        """Every SP that the controller knows."""
        found = _ask(self.api.processors.ListProcessors, processor_pb2.ListProcessorsRequest())
        return list(found.processors)

    def master(self) -> str:
        """The SP whose MVSM is active, by the controller's word."""
        return next(p.sp for p in self.processors() if p.master)

    def volume(self, name: str) -> volume_pb2.Volume:
        """A volume as the controller sees it, collected afresh."""
        return _ask(self.api.volumes.GetVolume, volume_pb2.GetVolumeRequest(name=name))

    def volumes(self) -> list[volume_pb2.Volume]:
        """Every volume in the store."""
        found = _ask(self.api.volumes.ListVolumes, volume_pb2.ListVolumesRequest())
        return list(found.volumes)

    def operations(self, *, open_only: bool = False) -> list[operation_pb2.Operation]:
        """Operations, the newest among them."""
        request = operation_pb2.ListOperationsRequest(open_only=open_only, page_size=1000)
        return list(_ask(self.api.operations.ListOperations, request).operations)

    def operation(self, operation_id: str) -> operation_pb2.Operation:
        """One operation with its steps."""
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        return _ask(self.api.operations.GetOperation, request)

    def vsm(self, sp: str) -> tuple[vsm_pb2_grpc.VsmServiceStub, grpc.Channel]:
        """A client of an SP's VSM, and its channel, which the caller closes."""
        channel = grpc.insecure_channel(self.sps[sp].addresses["--vsm"])
        return vsm_pb2_grpc.VsmServiceStub(channel), channel

    def caller(self) -> vsm_pb2.Caller:
        """What the controller of now would say it is."""
        now = self.status()
        return vsm_pb2.Caller(cluster_id=now.cluster_id, term=now.term)

    def view(self, sp: str) -> vsm_pb2.View:
        """What an SP says it holds, asked from the SP itself."""
        stub, channel = self.vsm(sp)
        with channel:
            return _ask(stub.GetView, vsm_pb2.GetViewRequest(caller=self.caller()))

    def views(self) -> dict[str, vsm_pb2.View]:
        """Every SP's view."""
        return {sp: self.view(sp) for sp in self.sps}

    def settled(self, seconds: float = 60.0) -> None:
        """Waits until no operation is open."""
        wait_for("every operation to end", lambda: not self.operations(open_only=True), seconds)

    def logs(self) -> str:
        """The end of every log, for a failed test."""
        return "\n".join(f"--- {d}\n{d.tail()}" for d in self.daemons if d.log.exists())


def _ask(method: grpc.UnaryUnaryMultiCallable[Q, A], request: Q) -> A:
    """One call with a deadline; what fails is an OSError, so that `wait_for` may go on."""
    try:
        return method(request, timeout=10.0)
    except grpc.RpcError as error:
        raise ConnectionError(f"{error.code()}: {error.details()}") from error


def leaves(node: common_pb2.Node) -> list[common_pb2.Leaf]:
    """The references in a tree, left to right."""
    match node.WhichOneof("kind"):
        case "leaf":
            return [node.leaf]
        case "mirror":
            children = [leg.node for leg in node.mirror.legs]
        case "stripe":
            children = list(node.stripe.columns)
        case "concat":
            children = list(node.concat.parts)
        case _:
            children = []
    return [leaf for child in children for leaf in leaves(child)]
