"""No room (4), nobody answered in time (5), refused for safety (6), defects and damage (9)."""

TEXTS: dict[str, tuple[str, str]] = {
    # 4: no room.
    "VS3070": (
        "A port that an earlier run of the quickstart chose is in use by something else.",
        "End what listens there, or remove the file that the message names to have other ports "
        "chosen.",
    ),
    "VS3071": (
        "A quickstart runs in this directory already.",
        "End it with Ctrl-C, or give another directory with --dir (`make run DATA=dir`).",
    ),
    "VS3072": (
        "An SP can't be emptied, because no other SP is there that could serve the volume instead.",
        "Start another SP, or let one that is drained hold objects again (`vswitchctl sp "
        "undrain`).",
    ),
    "VS3074": (
        "That version of the volume was a moment within a move: a range of it was out.",
        "Restore the version before it or after it; `vswitchctl volume history NAME` shows them.",
    ),
    "VS3075": (
        "A plan can't be applied any more: the volume has changed since it was made, and a "
        "plan is carried out exactly as it was shown or not at all.",
        "Ask for a new plan with --dry-run, look at it, and apply that.",
    ),
    "VS3076": (
        "A plan can't be applied any more: the space that it takes has gone to something else.",
        "Ask for a new plan with --dry-run, look at it, and apply that.",
    ),
    "VS3077": (
        "That plan has been applied already, or is an operation of its own.",
        "See `vswitchctl operation show ID` for what came of it.",
    ),
    "VS3078": (
        "An SP is drained: it is being emptied, or is empty already, and nothing new may go there.",
        "Choose another SP, or let it hold objects again with `vswitchctl sp undrain SP`.",
    ),
    "VS3079": (
        "SPs of several clusters have come to a controller that has an empty store, so it "
        "can't tell whose it is.",
        "Stop the SPs that do not belong here, start the controller again, and try again.",
    ),
    "VS3080": (
        "The kernel of this host has no NBD client, or has not loaded it.",
        "Run `modprobe nbd` as root, and have it loaded at boot (the unit vswitchd-host does). "
        "Debian's kernels all have it; a kernel of your own needs CONFIG_BLK_DEV_NBD.",
    ),
    "VS3081": (
        "The host service may not make block devices: the kernel asks for CAP_SYS_ADMIN.",
        "Run it as root, or by its systemd unit; within a container it can't run.",
    ),
    "VS3082": (
        "The device is mounted, swapped on, or a part of another one.",
        "Unmount it (`findmnt`, `lsblk` show where it is), then detach it. --force takes it away "
        "all the same, and whoever uses it gets errors.",
    ),
    "VS3083": (
        "The device that was asked for belongs to another NBD client.",
        "Leave --device out to have a free one, or disconnect the other client's.",
    ),
    "VS3084": (
        "The file hosttab can't be read or written.",
        "Mend what the message says; it is /etc/vswitchd/hosttab if nothing else is configured.",
    ),
    "VS3085": (
        "The device is not there any more: somebody has disconnected it with another tool.",
        "Detach the volume, then attach it again.",
    ),
    "VS3086": (
        "The owner of the volume has left legs of its mirrors behind while the controller was "
        "away, and the store has learnt it. What was planned before was undone, or left as far as "
        "it had come.",
        "Look at the volume (`vswitchctl volume show NAME`), then ask again. Legs that were left "
        "behind come back by themselves.",
    ),
    "VS3087": (
        "An SP has recorded that the owner of the volume has left legs behind by itself, and the "
        "controller does not know it yet.",
        "Nothing: the controller learns it from the SPs within a second, and goes on from there.",
    ),
    "VS3088": (
        "The owner of a volume wanted to leave legs behind by itself, but somebody has decided on "
        "the volume since, or a T1 object that would stay may lack writes.",
        "Nothing if the controller is there: it decides. If it is away, bring it back.",
    ),
    "VS4010": (
        "There is not enough free space where the layout wants it. Space that open operations "
        "have planned to take does not count as free.",
        "Add a device, choose another place, or delete what is not needed; the message lists "
        "what is free.",
    ),
    "VS4020": (
        "A device, its label, or the file system beneath it is full. A file device is sparse, so "
        "the file system can run out before the device does.",
        "Make room on the file system, or use another device.",
    ),
    # 5: somebody did not answer in time.
    "VS5001": (
        "A program can't be reached: it is not running, or the network does not let the call "
        "through.",
        "Start it, or correct the address: --controller or VSWITCHD_CONTROLLER for vswitchctl, "
        "`controller` under [processor] for an SP.",
    ),
    "VS5002": (
        "A call had no answer by its deadline. It may still happen.",
        "Try again; said again with the same --request-id, a request happens once.",
    ),
    "VS5010": (
        "Requests in flight did not end in time, so the engine kept the old tree. Usually some "
        "of them wait for a device or for another SP that is away.",
        "Bring back what is slow or away; the operation tries again by itself.",
    ),
    "VS5020": (
        "No SP is master now, so nobody can say which objects a change affects. I/O goes on.",
        "Start an SP, or wait some seconds: the controller designates one.",
    ),
    "VS5021": (
        "The operation waits for a resync: after an unclean end the legs of the mirror are being "
        "made alike, and until then they can't be copied from or dropped.",
        "Wait; `vswitchctl volume show NAME` says how far it is.",
    ),
    "VS5030": (
        "The time given with --timeout is over. The operation goes on.",
        "Watch it with `vswitchctl operation watch ID`, or cancel it.",
    ),
    "VS5031": (
        "The time that was given for draining an SP is over. Draining goes on by itself.",
        "Look at `vswitchctl operation list --open` for how far it is, and at `vswitchctl status` "
        "for what it is stuck at.",
    ),
    "VS5032": (
        "A store was recovered, and then not all SPs came to their controller in time. "
        "Nothing is lost: hosts are served all the while.",
        "Start the SPs that the message names; `vswitchctl fsck` tells what is left to do.",
    ),
    # 6: refused for the data's safety.
    "VS5070": (
        "The quickstart's controller and SPs started, but its devices or its volume were not "
        "made in time.",
        "Look at the logs that the message names; the machine may be slow, then run it again.",
    ),
    "VS5071": (
        "No TCP port is free on this machine.",
        "End what holds so many ports, then try again.",
    ),
    "VS5080": (
        "An SP's NBD can't be reached, or does not serve the volume at present. It is tried again "
        "and again; the other SPs go on.",
        "Look at `vswitchctl sp list`, and at the network between this host and that address.",
    ),
    "VS5081": (
        "An SP does not know yet that the volume has grown. It is tried again.",
        "If it lasts, `vswitchctl volume show` says what is wrong with that SP.",
    ),
    "VS5082": (
        "None of the SPs that serve the volume lets this host in, so there is nothing to make a "
        "device of.",
        "Start the SPs, or have the volume served where this host can reach it: `vswitchctl "
        "volume serve`.",
    ),
    "VS5083": (
        "Nobody answers at the host service's socket on this machine, or you may not write to it.",
        "Start it (`systemctl start vswitchd-host`), and run vswitchctl host as root.",
    ),
    "VS5090": (
        "An SP was asked to give way to a new process (SIGUSR2, `systemctl reload`), and the new "
        "one did not get ready. The old one goes on, and hosts have noticed nothing.",
        "Look at what the new process said in the log; mend the installation or the "
        "configuration (`vswitchd config check`), and ask again.",
    ),
    "VS5091": (
        "This process was started to take over from another one, which has given it nothing.",
        "Nothing is to be done if the other goes on; else start the SP as usual.",
    ),
    "VS6010": (
        "Removing this leg would leave no leg in sync, and so lose data.",
        "Add another leg and let it come into sync first (`vswitchctl volume mirror add`).",
    ),
    "VS6011": (
        "This SP is the last that serves the volume; hosts would lose it.",
        "Let another SP serve it first (`vswitchctl volume serve`), or delete the volume.",
    ),
    "VS6012": (
        "SPs are lost, and the volume can't go on without them: what they hold is nowhere else, "
        "too few of a mirror's legs are left to vote, or power was lost under those that are left "
        "and one that is gone may have what they lack. Of two legs one and the controller's store "
        "are enough, of three it takes two. Going on with fewer could bring back old data.",
        "Bring an SP back; hosts wait meanwhile. If it will not come back, `vswitchctl volume "
        "force NAME` goes on with what there is: what was written lately may be lost.",
    ),
    "VS6014": (
        "The legs of a mirror do not hold the same bytes: a device has changed what it was given, "
        "or somebody wrote to it past vswitchd. Which leg is right nobody can say of two; of three "
        "or more most likely what most of them have.",
        "Look at the devices and their logs. `vswitchctl volume mirror verify NAME --repair` makes "
        "the legs alike: what most have, or where as many have something else, what the first has. "
        "If the first leg is the bad one, remove it and add a new one instead.",
    ),
    "VS6020": (
        "The device is not what it should be: it holds something that vswitchd did not write, "
        "carries another cluster's or another device's label, or is smaller than its label says.",
        "Check that it is the right device. If its data is not needed, make it blank yourself "
        "first; vswitchd never does.",
    ),
    "VS6021": (
        "A controller of another cluster called this SP.",
        "Check the addresses: an SP belongs to the cluster that it joined first.",
    ),
    "VS6030": (
        "An SP of another cluster tried to join this one.",
        "Start it with its own cluster's --controller; or, to begin anew as a member of this one, "
        "with an empty --state and blank devices.",
    ),
    "VS6031": (
        "Only a controller whose store has never held anything can take over the cluster that "
        "SPs name; this one has a cluster of its own.",
        "Start a controller with an empty --state, and have that recover the cluster.",
    ),
    "VS6032": (
        "Not everything that the cluster had can be recovered from the SPs that answer.",
        "Start the SPs and bring back the devices that the message names, and try again. Only "
        "if they are lost for good take the rest with --force.",
    ),
    "VS6040": (
        "The volume is smaller than the device that it is attached as. A device is never made "
        "smaller while it may be in use: what lies behind the new end would be lost.",
        "Unmount what is on it, detach it, and attach it again.",
    ),
    "VS6050": (
        "The last initiator of a volume was to be taken out of its list. A volume with an empty "
        "list is open to whoever reaches a portal, which is seldom what a denial is for.",
        "Allow the initiators that shall go on first, or unserve the volume; with --open it is "
        "opened to everybody.",
    ),
    # 9: a defect or damage.
    "VS9001": (
        "A call failed in a way that the callee did not explain: a defect.",
        "Look at the log of the program that the message names, and report it with that log.",
    ),
    "VS9002": (
        "A request met a fault in the program that answered it: a bug.",
        "Look for `fault` in that program's log, and report it with what stands there. Whether "
        "the request had an effect, the object itself shows.",
    ),
    "VS9010": (
        "The restructured volume would break a rule that must always hold, so it was not used: "
        "a defect in the planning.",
        "Nothing was changed. Report it, with the request and what "
        "`vswitchctl volume show NAME -o json` prints.",
    ),
    "VS9020": (
        "A file in the SP's state directory is damaged.",
        "Restore it from a copy, or remove it as the message says; the controller pushes "
        "the SP's objects again, and the data on the devices is not touched.",
    ),
    "VS9021": (
        "The engine failed: a device can't be opened, read or written, or there is a defect.",
        "Check that this user may use the device, and look at the SP's log and the system's log "
        "for errors of it.",
    ),
    "VS9022": (
        "An SP can't read or write its state directory: the disk is full or failing, or the "
        "permissions are wrong.",
        "Make room, or mend the disk or the permissions, then start the SP again.",
    ),
    "VS9030": (
        "The controller's store can't be read: it is damaged, or is no store.",
        "Restore it from a copy. SPs go on serving meanwhile.",
    ),
    "VS9031": (
        "The controller's store can't be written or read at the moment: the disk is full or "
        "read-only, or failing.",
        "Make room or mend the disk, then restart the controller; it goes on from the journal.",
    ),
    "VS9040": (
        "A copy onto a new leg failed: a device could not be read or written. The change was "
        "undone.",
        "Look at `vswitchctl status` and the logs of the SPs of that leg, mend the device, ask "
        "again.",
    ),
    "VS9070": (
        "A process of the quickstart ended or did not become ready.",
        "Read the end of its log, which the message shows, and mend what it says.",
    ),
    "VS9071": (
        "The quickstart could not make its volume.",
        "Mend what the message says, then run it again; what is there already is kept.",
    ),
    "VS9080": (
        "The kernel has refused to make or change an NBD device, for a reason of its own.",
        "Look at `dmesg`; detaching the volume and attaching it again makes the device anew.",
    ),
    "VS9081": (
        "The file in which the host service remembers its attachments is damaged.",
        "Move it away and start the service again, then attach the volumes: devices that are "
        "there are found by their volumes' ids, and go on.",
    ),
}
