"""In the guest: runs what the test asks for over a virtio port, several things at a time.

One JSON object a line: {"id", "script"} comes in, {"id", "status", "output"} goes out.
"""

import json
import os
import subprocess
import threading
from pathlib import Path

answering = threading.Lock()


def port() -> str:
    """The device of the port that is named `agent`."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == "agent":
            return f"/dev/{name.parent.name}"
    raise SystemExit("there is no port named agent")


def carry_out(out: int, asked: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", asked["script"]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": "/var/tmp", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    text = done.stdout.decode(errors="replace")
    answer = {"id": asked["id"], "status": done.returncode, "output": text}
    line = json.dumps(answer).encode() + b"\n"
    with answering:
        while line:
            line = line[os.write(out, line) :]


def main() -> None:
    both = os.open(port(), os.O_RDWR)
    os.write(both, b'{"id": 0, "status": 0, "output": "up"}\n')
    with os.fdopen(both, "rb", buffering=0, closefd=False) as asked:
        waiting = b""
        while True:
            waiting += asked.read(65536) or b""
            while b"\n" in waiting:
                line, _, waiting = waiting.partition(b"\n")
                threading.Thread(target=carry_out, args=(both, json.loads(line))).start()


if __name__ == "__main__":
    main()
