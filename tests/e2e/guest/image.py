"""What the guest boots: a root of Debian's packages, its kernel, a small initramfs; and a second
disk with the product. Nothing is installed on this machine.

The root is made once for a list of packages (about 90 s) and kept in GUEST_CACHE, or in
~/.cache/vswitchd-guest. The product's disk is made anew for each run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.process import ROOT

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("GUEST_CACHE", Path.home() / ".cache" / "vswitchd-guest"))
KERNEL = "linux-image-cloud-amd64"
SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "kmod", "iproute2", "procps", "python3", "fio"),
    *("nbd-client", "open-iscsi", "e2fsprogs", "xfsprogs", "busybox-static"),
)
#: In the initramfs, until the root's disk can be seen.
EARLY = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
#: Of the environment's packages the guest needs only what the product itself needs.
LEAVE_OUT = (
    *("mypy", "mypyc", "ruff", "uv", "maturin", "grpc_tools", "hypothesis", "pip", "setuptools"),
    *("pytest", "_pytest", "xdist", "mypy_protobuf", "_hypothesis*"),
)


@dataclass(frozen=True)
class Image:
    """What QEMU is given."""

    kernel: Path
    initramfs: Path
    root: Path
    product: Path


def run(*argv: str | Path, **options: object) -> str:
    """A command's output; RuntimeError with all that it said if it fails."""
    done = subprocess.run(
        list(map(str, argv)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} -> {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def made(product: Path, kernel: str = KERNEL, more: tuple[str, ...] = ()) -> Image:
    """Everything, made or found. `product`: where to put the product's disk."""
    packages = sorted({*PACKAGES, *more})
    sources = b"".join((HERE / n).read_bytes() for n in ("image.py", "agent.py"))
    key = hashlib.sha256(repr((kernel, packages)).encode() + sources).hexdigest()[:12]
    base = CACHE / f"{kernel}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "done").exists():
            shutil.rmtree(base, ignore_errors=True)
            base.mkdir()
            _build(base, kernel, packages)
            (base / "done").touch()
    _product(product)
    return Image(base / "vmlinuz", base / "initramfs", base / "root.img", product)


def _mirror() -> str:
    """Where this machine's packages come from."""
    shown = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)")
    for line in shown.splitlines():
        uri, _, suite = line.partition(" ")
        if suite == SUITE:
            return uri
    raise RuntimeError(f"apt knows no source of {SUITE}: {shown}")


def _build(base: Path, kernel: str, packages: list[str]) -> None:
    root = base / "root"
    run(
        *("debootstrap", "--variant=minbase", f"--include={','.join(packages)}"),
        *(SUITE, root, _mirror()),
    )
    version = _kernel(base, root, kernel)
    _settle(root)
    _initramfs(base, root, version)
    for waste in ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt"):
        shutil.rmtree(root / waste, ignore_errors=True)
    _disk(base / "root.img", root, "2G", "root")
    shutil.rmtree(root)


def _kernel(base: Path, root: Path, kernel: str) -> str:
    """Unpacks the kernel that the package stands for; returns its version."""
    for line in run("apt-cache", "depends", kernel).splitlines():
        words = line.split()
        if words[:1] == ["Depends:"] and words[1].startswith("linux-image-"):
            package = words[1]
            break
    else:
        package = kernel
    debs = base / "debs"
    debs.mkdir()
    run("apt-get", "-qq", "download", package, cwd=debs)
    (deb,) = debs.glob("*.deb")
    run("dpkg", "-x", deb, debs / "out")
    (modules,) = (debs / "out" / "lib" / "modules").iterdir()
    (root / "lib" / "modules").mkdir(parents=True, exist_ok=True)
    shutil.move(modules, root / "lib" / "modules" / modules.name)
    shutil.copy(debs / "out" / "boot" / f"vmlinuz-{modules.name}", base / "vmlinuz")
    shutil.rmtree(debs)
    run("chroot", root, "depmod", modules.name)
    return modules.name


def _settle(root: Path) -> None:
    """What makes a root of it: the agent, the network, the product's disk."""
    (root / "etc" / "fstab").write_text("LABEL=product /opt/product ext4 ro 0 0\n")
    (root / "opt" / "product").mkdir()
    with (root / "etc" / "systemd" / "system.conf").open("a") as conf:
        conf.write("DefaultTimeoutStopSec=15s\n")
    (root / "etc" / "hostname").write_text("guest\n")
    network = root / "etc" / "systemd" / "network" / "eth.network"
    network.write_text(
        "[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
        "LinkLocalAddressing=no\n"
    )
    shutil.copy(HERE / "agent.py", root / "usr" / "local" / "bin" / "agent.py")
    (root / "etc" / "systemd" / "system" / "agent.service").write_text(
        "[Unit]\nDescription=What the tests speak to\nRequiresMountsFor=/opt/product\n"
        "[Service]\nExecStart=/usr/bin/python3 /usr/local/bin/agent.py\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    commands = root / "usr" / "bin"
    for name, module in (("vswitchd", "vswitchd"), ("vswitchctl", "vswitchd.cli")):
        script = commands / name
        script.write_text(
            f'#!/bin/sh\nPYTHONPATH=/opt/product exec /usr/bin/python3 -m {module} "$@"\n'
        )
        script.chmod(0o755)
    # Where the test puts what it learns only when its cluster runs.
    (root / "etc" / "vswitchd").mkdir()
    for unit in ("agent", "systemd-networkd", "systemd-networkd-wait-online"):
        run("chroot", root, "systemctl", "enable", f"{unit}.service")
    for unit in ("serial-getty@ttyS0", "getty@tty1", "systemd-timesyncd", "apt-daily.timer"):
        run("chroot", root, "systemctl", "mask", unit)


def _initramfs(base: Path, root: Path, version: str) -> None:
    """Loads the disk's modules, mounts the root, goes there."""
    tree = base / "early"
    for name in ("bin", "dev", "new", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin" / "busybox", tree / "bin" / "busybox")
    order: list[str] = []
    for module in EARLY:
        shown = run("chroot", root, "modprobe", "-S", version, "--show-depends", module)
        for line in shown.splitlines():
            if line.startswith("insmod ") and line.split()[1] not in order:
                order.append(line.split()[1])
    for number, path in enumerate(order):
        shutil.copy(f"{root}{path}", tree / "modules" / f"{number:02}.ko")
    init = tree / "init"
    init.write_text(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n"
        "for m in /modules/*; do /bin/busybox insmod $m; done\n"
        "until /bin/busybox mount -t ext4 /dev/vda /new; do /bin/busybox sleep 0.1; done\n"
        "/bin/busybox mount --move /dev /new/dev\n"
        "exec /bin/busybox switch_root /new /sbin/init\n"
    )
    init.chmod(0o755)
    run("sh", "-c", f"find . | cpio -o -H newc --quiet -R 0:0 > '{base}/initramfs'", cwd=tree)
    shutil.rmtree(tree)


def _product(path: Path) -> None:
    """A disk with the product as it is now, and what it imports."""
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError(
            f"the guest has Debian's Python 3.11, this environment {sys.version.split()[0]}: make "
            "the environment with `make PYTHON=python3.11`"
        )
    tree = path.with_suffix(".tree")
    site = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    shutil.copytree(site, tree, ignore=shutil.ignore_patterns(*LEAVE_OUT, "__pycache__", "*.pth"))
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vswitchd", tree / "vswitchd", ignore=skip, dirs_exist_ok=True)
    shutil.copytree(ROOT / "systemd", tree / "systemd")
    shutil.copytree(HERE / "scripts", tree / "scripts", ignore=skip)
    # Under emulation every import that need not be compiled counts.
    run(sys.executable, "-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash", tree)
    _disk(path, tree, "512M", "product")
    shutil.rmtree(tree)


def _disk(path: Path, tree: Path, size: str, label: str) -> None:
    run("mke2fs", "-q", "-t", "ext4", "-L", label, "-d", tree, path, size)
