"""The kernel's refusals, as far as this machine has them to offer."""

from __future__ import annotations

from pathlib import Path

import pytest

from vswitchd.errors import VsError
from vswitchd.host.kernel import Kernel


@pytest.mark.skipif(Path("/sys/module/nbd").exists(), reason="this kernel has nbd.ko loaded")
def test_without_the_module_people_are_told_to_load_it() -> None:
    kernel = Kernel(3, 300)
    for call in (kernel.dead_links, lambda: kernel.disconnect(0)):
        with pytest.raises(VsError, match="modprobe nbd") as error:
            call()
        assert error.value.code == "VS3080"


def test_there_is_no_device_where_there_is_none() -> None:
    kernel = Kernel(3, 300)
    assert kernel.size(4095) == 0
    assert kernel.find("none") is None
