"""`python -m tests.mutate`: breaks rules of claims.md and coherency.md in a copy of the code, one
at a time, and shows that a test fails for each. `tests/sim/mutants.py` has those that only the
simulation sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("tests/unit", "tests/processor", "tests/controller", "tests/prop/test_election.py")
PLANS = ("tests/unit/test_orders.py", "tests/prop/test_plans.py", "tests/unit/test_model.py")


@dataclass(frozen=True)
class Mutation:
    """A rule, and the text whose change breaks it."""

    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = PLANS


MUTATIONS = (
    Mutation(
        "claims 7, 39, 40: an LRN where the T1 is",
        "vswitchd/model/objects.py",
        "homes = {leaf.t1: volume.t1(leaf.t1).home for leaf in leaves(volume.root)}",
        "homes = {leaf.t1: volume.owner for leaf in leaves(volume.root)}",
    ),
    Mutation(
        "claims 8, 41: an RRN knows its home's address",
        "vswitchd/model/objects.py",
        "needed = sorted((set(homes.values()) | {volume.owner}) - {sp})",
        "needed = sorted(({volume.owner}) - {sp})",
    ),
    Mutation(
        "claims 9, 10: T1 first",
        "vswitchd/restructure/vcm.py",
        "    draft.group(PutT1(new.t1(t1), new.epoch) for _, t1 in t1_added if t1 not in moved)\n",
        "",
    ),
    Mutation(
        "claims 11, 46, 47: T2 before T1 on removal",
        "vswitchd/restructure/vcm.py",
        "    draft.group(RemoveT2(sp, volume.id, volume.version) for sp in volume.serving)\n",
        "",
    ),
    Mutation(
        "claims 13, 50: references first",
        "vswitchd/restructure/vcm.py",
        "    draft.add(Commit(new))\n    _activate(draft, new, order)\n",
        "    draft.group(DeleteT1(sp, t1, new.epoch) for sp, t1 in t1_removed)\n"
        "    draft.add(Commit(new))\n    _activate(draft, new, order)\n",
    ),
    Mutation(
        "claims 14, 51: trees without the reference",
        "vswitchd/restructure/stages.py",
        "return [Become(out), Become(following(out, root=volume.root, t1s=t1s))]",
        "return [Become(following(volume, root=volume.root, t1s=t1s))]",
    ),
    Mutation(
        "claims 15, 53: the reference is dropped",
        "vswitchd/restructure/vcm.py",
        "            draft.add(DropReference(home, old.id, t1))\n",
        "            pass\n",
    ),
    Mutation(
        "claims 16, 54: fenced, then adopted",
        "vswitchd/restructure/vcm.py",
        "    draft.group(FenceT1(old.t1(t1).home, t1, new.epoch, old.epoch) "
        "for t1 in sorted(moved))\n",
        "",
    ),
    Mutation(
        "claims 17, 18: the new home's tree first",
        "vswitchd/restructure/vcm.py",
        "return sorted(order, key=lambda sp: sp not in homes)",
        "return sorted(order, key=lambda sp: sp in homes)",
    ),
    Mutation(
        "claims 19, 20: planned from what SPs say",
        "vswitchd/restructure/vbm.py",
        "        held = require_agreement(volume, self.views, absent(volume, up))\n",
        "        held = {t1.id: t1 for t1 in volume.t1s}\n",
        ("tests/unit", "tests/controller"),
    ),
    Mutation(
        "claims 24, 57: the MVSM names what is affected",
        "vswitchd/restructure/mvsm.py",
        "            elif current != target:",
        "            elif current is None:",
    ),
    Mutation(
        "claims 26, 27: the others are inactive",
        "vswitchd/processor/vsm.py",
        "        if self._mvsm_term != caller.term:\n",
        "        if False:\n",
        QUICK,
    ),
    Mutation(
        "terms: SPs refuse lower ones",
        "vswitchd/processor/vsm.py",
        "        if caller.term < seen:\n",
        "        if False:\n",
        QUICK,
    ),
    Mutation(
        "step 6: the cursor moves by compare-and-swap",
        "vswitchd/store/memory.py",
        "        if known is None or (known.cursor != expect_cursor and known != record):\n",
        "        if known is None:\n",
        ("tests/contract", "tests/controller"),
    ),
    Mutation(
        "step 5: a plan for another version is refused",
        "vswitchd/controller/service.py",
        "            if plan.base != volume:\n",
        "            if False:\n",
        ("tests/controller",),
    ),
    Mutation(
        "step 7: the old tree is fenced before the swap",
        "vswitchd/restructure/vcm.py",
        "        draft.group(fence for fence in fences if fence.t1 not in returning)\n",
        "",
    ),
    Mutation(
        "data 4: the last leg in sync stays",
        "vswitchd/restructure/legs.py",
        "        if not any(one.state is LegState.IN_SYNC for one in kept):\n",
        "        if not kept:\n",
    ),
    Mutation(
        "data 10: another cluster is refused",
        "vswitchd/processor/vsm.py",
        "        if caller.cluster != mine:\n",
        "        if False:\n",
        QUICK,
    ),
    Mutation(
        "the collector removes only what the ledger knows",
        "vswitchd/controller/drift.py",
        "            and held.t1.id in ledger\n",
        "",
        ("tests/controller",),
    ),
    Mutation(
        "a pause never holds hosts",
        "vswitchd/restructure/steps.py",
        "        if not (swapping or out or activating):\n",
        "        if True:\n",
        ("tests/controller",),
    ),
    Mutation(
        "a relayout keeps old legs until new ones are in sync",
        "vswitchd/restructure/relayout.py",
        "    if built.interim != now.root:\n",
        "    if False:\n",
        ("tests/unit", "tests/prop/test_relayout.py"),
    ),
)


def survives(mutation: Mutation, root: Path) -> bool:
    """True if every test passes although the rule is broken: then nothing holds it."""
    path = root / mutation.file
    text = path.read_text()
    assert mutation.old in text, f"{mutation.rule}: {mutation.file} has changed"
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests],
            cwd=root,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        return done.returncode == 0
    finally:
        path.write_text(text)


def main() -> int:
    """Prints each rule with what came of breaking it."""
    alive = 0
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "mutated"
        ignored = shutil.ignore_patterns(".git", ".venv", "target", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, root, ignore=ignored, symlinks=True)
        for mutation in MUTATIONS:
            lived = survives(mutation, root)
            alive += lived
            print(f"{'SURVIVES' if lived else 'seen':9} {mutation.rule}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
