"""The state does not allow it now (3)."""

TEXTS: dict[str, tuple[str, str]] = {
    # 3: the state does not allow it now.
    "VS3010": (
        "The request needs an SP that has not been heard: it homes a part of the volume, serves "
        "it, or was named. Nothing is planned on what an SP was last known to hold.",
        "Start the SP, or see why the controller can't reach it; `vswitchctl sp list` shows who "
        "is up.",
    ),
    "VS3011": (
        "An SP does not yet hold the volume's tree in the version that the store has. It has "
        "just come back, and the controller is bringing it up to date.",
        "Try again in some seconds. If it lasts, look at `vswitchctl status` and the SP's log.",
    ),
    "VS3012": (
        "A T1 object lies on a device that its SP does not reach, or that is down.",
        "Bring the device back: mount the disk, start the NBD server, check the path. It is "
        "then opened again by itself.",
    ),
    "VS3014": (
        "A leg of the volume is not in sync, or a range is on its way to another SP. Other "
        "changes wait until that is settled.",
        "Let the operation that does it end (`vswitchctl operation list --open`), or remove the "
        "leg.",
    ),
    "VS3015": (
        "An SP does not hold a T1 object as the store says: it is missing, or has other extents. "
        "Either a device is away, or a label was changed by something else.",
        "Check the SP's devices with `vswitchctl device list`. If all are up, don't change the "
        "volume; keep the labels and the store for inspection.",
    ),
    "VS3017": (
        "Removing this leg would change the size of a part within a concat, and so shift the "
        "data of the parts after it.",
        "Use `vswitchctl volume apply` with the layout that is wanted; it copies.",
    ),
    "VS3018": (
        "No mirror of the volume has two legs in sync, so there is nothing to compare.",
        "Add a leg (`vswitchctl volume mirror add`), or wait until one that is away is back.",
    ),
    "VS3019": (
        "A leg of a mirror has been away for `replace_after_seconds`, and there is no room for "
        "another on an SP that has no leg of that mirror: a second one on an SP would be lost "
        "with the first.",
        "Bring the SP or the device of the leg back, or give an SP that has no leg a device with "
        "enough room. Until then the mirror goes on with the legs that it has.",
    ),
    "VS3020": (
        "The state directory belongs to an SP of another name.",
        "Start the SP under the name that the message says, or give it a --state of its own.",
    ),
    "VS3021": (
        "The engine can't do it in its present state: an address is in use, a tree still refers "
        "to the object, or a device still holds objects.",
        "Free what the message names, then try again.",
    ),
    "VS3022": (
        "The engine has seen a later version or fence epoch of the object. What comes with a "
        "lower one is refused, so that an old tree can do no harm.",
        "Usually nothing: the controller collects anew and goes on. Look at "
        "`vswitchctl volume show NAME` for the version that is current.",
    ),
    "VS3023": (
        "A call came under a term that is over: a later controller or a later designation of the "
        "master has been seen by this SP.",
        "Nothing if it passes. If it lasts, make sure that only one controller runs for these "
        "SPs, and that its store was not put back to an older copy.",
    ),
    "VS3024": (
        "An SP was sent a T2 object that is older than the one it holds.",
        "Nothing if it passes. If it lasts, the controller's store is older than the SP's state: "
        "check that it was not put back to an older copy.",
    ),
    "VS3025": (
        "An SP was told to switch to a version of a volume's tree that it has not staged.",
        "Nothing if it passes: the controller stages it again. If it lasts, look at the SP's log "
        "and its state directory.",
    ),
    "VS3026": (
        "The SP that was asked as master is not the master of this term. It has restarted, or "
        "another has been designated meanwhile.",
        "Try again in some seconds; `vswitchctl sp list` shows the master.",
    ),
    "VS3027": (
        "Another process has this SP's state directory open.",
        "End that process, or give this SP a --state of its own. Two SPs must never share one.",
    ),
    "VS3028": (
        "A copy was asked for by the version of a tree, and the SP has another: the request came "
        "late, or the SP has not caught up.",
        "Nothing: the controller asks again if it still wants the copy. If an operation keeps "
        "waiting for it, look at `vswitchctl volume show NAME --tree`.",
    ),
    "VS3029": (
        "The device is labelled, and its label says that its data has no checksums. Whether it has "
        "is settled when it is labelled, since they lie in front of the data.",
        "Add it without --checksums. To have some, move its data away, remove the device from "
        "every SP, wipe its first 4 MiB and add it again.",
    ),
    "VS3030": (
        "The address for metrics can't be listened on: it is in use, or not this machine's.",
        "Choose another with --metrics; port 0 takes a free one.",
    ),
    "VS3031": (
        "The address for the API, or for this SP's VSM, can't be listened on: it is in use, or "
        "not this machine's.",
        "Stop the process that uses it, or choose another with --listen or --vsm.",
    ),
    "VS3040": (
        "Another controller uses this state directory.",
        "Stop that one, or give this one a --state of its own. Two controllers must never share "
        "a store.",
    ),
    "VS3041": (
        "The store was written by a version of vswitchd with another schema.",
        "Run the version that wrote it.",
    ),
    "VS3042": (
        "The volume has changed since this was planned: its version in the store is another.",
        "Look at the volume again, and ask again if it is still wanted.",
    ),
    "VS3043": (
        "An operation's journal was moved on by somebody else since it was read.",
        "Make sure that only one controller uses this store; then restart it, and it goes on from "
        "the journal.",
    ),
    "VS3047": (
        "Who may use the volume was changed by somebody else since it was read, or the volume is "
        "gone.",
        "Look at it again (`vswitchctl volume access list NAME`), then repeat the command.",
    ),
    "VS3050": (
        "The operation has ended, or is being undone; it can't be cancelled any more.",
        "Look at `vswitchctl operation show ID` for how it ended.",
    ),
    "VS3051": (
        "The operation has passed its point of no return: going back would lose more than going "
        "on.",
        "Let it end, then ask for the opposite change.",
    ),
    "VS3052": (
        "The operation was cancelled on request and undone.",
        "Nothing; the volume is as it was before. Ask again when it is wanted.",
    ),
    "VS3060": (
        "Another operation is changing this volume; there is one at a time.",
        "Wait for it with `vswitchctl operation watch ID`, or cancel it.",
    ),
    "VS3061": (
        "The device holds a T1 object of a volume, so it can't be removed.",
        "Move the object to another SP or device (`vswitchctl volume move`, `volume apply`), or "
        "delete the volume.",
    ),
    "VS3062": (
        "The SP homes T1 objects of a volume or serves it, so it can't be forgotten.",
        "Move its objects away (`vswitchctl volume move`) and stop serving there "
        "(`vswitchctl volume unserve`) first.",
    ),
    "VS3063": (
        "The SP still has a device, so it can't be forgotten.",
        "Remove the device from it with `vswitchctl device remove NAME --sp SP` first.",
    ),
    "VS3064": (
        "An open operation has a step at the SP, so the SP, or a device there, can't go now.",
        "Wait for the operation with `vswitchctl operation watch ID`, or cancel it.",
    ),
}
