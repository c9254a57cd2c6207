"""What the quickstart tells people to try: lines to copy, with the real addresses in them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from vswitchd.quickstart.demo import LAYOUT, VOLUME, VOLUME_SIZE
from vswitchd.quickstart.ports import HOST

_TEXT = """
A controller and three SPs run; everything is in {directory}.
Volume {volume}: {size} MiB, {layout}, served by sp-a and sp-b.

Mount it (needs root and the kernel's nbd module):
  modprobe nbd
  nbd-client -name {volume} {host} {nbd_a} /dev/nbd0
  mkfs.ext4 /dev/nbd0
  mount /dev/nbd0 /mnt
and later: umount /mnt; nbd-client -d /dev/nbd0

Or use it without the module:
  nbdinfo {uri_a}
  nbdcopy somefile {uri_a}
  qemu-img compare -f raw -F raw {uri_a} {uri_b}
  mkdir -p {mnt} && nbdfuse {mnt} {uri_a} &      # then: the file {mnt}/nbd

Watch it:
  export VSWITCHD_CONTROLLER={host}:{api}
  {ctl} status
  {ctl} volume show {volume} --tree
  {ctl} operation list
  curl -s http://{host}:{metrics_a}/metrics | grep ^vswitchd_volume

Restructure it under load (no host sees an error):
  fio --name=load --ioengine=nbd --uri={uri_a} --rw=randrw --bs=4k --iodepth=16 \\
      --verify=crc32c --verify_state_save=0 --time_based --runtime=60 --size={size}M &
  {ctl} volume mirror add {volume} --sp sp-c
  {ctl} volume mirror remove {volume} --leg sp-a
  {ctl} volume move {volume} --from sp-b --to sp-a
  {ctl} volume apply {volume} --layout 'stripe(sp-a, sp-b, sp-c)'
  {ctl} volume grow {volume} --size 512M

Ctrl-C ends everything; the data stays for the next run.
"""


def _vswitchctl() -> str:
    """How this installation's command line is called."""
    beside = Path(sys.executable).with_name("vswitchctl")
    if beside.exists():
        return shlex.quote(str(beside))
    return f"{shlex.quote(sys.executable)} -m vswitchd.cli"


def welcome(directory: Path, chosen: dict[str, int]) -> str:
    """The text for a cluster in `directory` at those ports."""
    return _TEXT.format(
        directory=directory,
        mnt=shlex.quote(str(directory / "mnt")),
        volume=VOLUME,
        size=VOLUME_SIZE >> 20,
        layout=LAYOUT,
        host=HOST,
        ctl=_vswitchctl(),
        api=chosen["controller.listen"],
        metrics_a=chosen["sp-a.metrics"],
        nbd_a=chosen["sp-a.nbd"],
        uri_a=f"nbd://{HOST}:{chosen['sp-a.nbd']}/{VOLUME}",
        uri_b=f"nbd://{HOST}:{chosen['sp-b.nbd']}/{VOLUME}",
    )
