"""What error codes mean, for `vswitchctl explain`: code -> (what it means, what to do).

The first digit says what sort of error it is: 1 what was asked makes no sense, 2 something is not
there or is there already, 3 the state does not allow it now, 4 no room, 5 somebody did not answer
in time, 6 refused for the data's safety, 9 a defect or damage.
"""

from __future__ import annotations

EXPLAIN: dict[str, tuple[str, str]] = {
    # 1: what was asked makes no sense.
    "VS1001": (
        "A message between vswitchd's programs holds something that the receiver does not know, "
        "such as a node or a state of a later version.",
        "Run the same version of the controller, the SPs and vswitchctl (`vswitchd --version`).",
    ),
    "VS1010": (
        "A text that should be a size is not one. A size is a number of bytes, or a number with "
        "K, M, G, T or P; these are binary, and the result must be whole bytes.",
        "Write it like 4096, 512M, 20G or 1.5T.",
    ),
    "VS1011": (
        "A size is zero, negative, too large, or no multiple of 4096 bytes. Volumes and their T1 "
        "objects are made of blocks of 4096 bytes.",
        "Round the size to a multiple of 4096; anything in whole M or G is one.",
    ),
    "VS1012": (
        "A name can't be used for a volume or an SP. Names have 1 to 63 of a-z, 0-9, '.', '_' and "
        "'-', and begin with a letter or a digit; an SP's name must not mean something else in "
        "the layout language.",
        "Choose another name.",
    ),
    "VS1013": (
        "A layout does not parse; the message points at the place and says what was expected "
        "there. Layouts are made of mirror(..), stripe(..), concat(..) and places such as any, "
        "sp-a or sp-a/d0:10G.",
        "Mend the layout at the place shown. What `vswitchctl volume list` prints can be typed "
        "back as it is.",
    ),
    "VS1014": (
        "The sizes in a layout come to less than the volume needs. A mirror holds as much as its "
        "smallest leg, a stripe its smallest column times their number, a concat the sum.",
        "Give larger sizes in the layout, or leave them out to have them worked out.",
    ),
    "VS1015": (
        "The size asked for is not above the volume's present one. Volumes can grow; they can't "
        "be made smaller yet.",
        "Give the whole new size, not the difference.",
    ),
    "VS1016": (
        "A move names the same SP as its source and its target.",
        "Name another SP with --to; `vswitchctl sp list` shows them.",
    ),
    "VS1020": (
        "A stored plan, volume or object is not well formed; the message names the field. It was "
        "written by another version, or was damaged or edited.",
        "Run the version that wrote it, or restore the file or store that the message names "
        "from a copy.",
    ),
    "VS1030": (
        "The engine was asked for something that makes no sense for this device or object: a "
        "URI of an unknown kind, a path outside the directories that devices may lie in, a size "
        "or extent that does not fit, an NBD export that can't be used as a device.",
        "Correct what the message names. Device URIs are file:/path, block:/dev/x, "
        "nbd://host:port/export and nbd+unix:///export?socket=/path; their directories are "
        "device_root under [processor].",
    ),
    "VS1031": (
        "A T2 object that was made for one SP reached another. It is refused: its references "
        "would be local and remote the wrong way round.",
        "Check that no two SPs announce the same --vsm address, then restart the one that is "
        "wrong.",
    ),
    "VS1032": (
        "A volume's id is not one that this SP can keep; ids are made by the controller.",
        "Run the same version of the controller and the SPs; if they are, report it with the "
        "SP's log.",
    ),
    "VS1040": (
        "The log level is not one that there is.",
        "Use debug, info, warning or error, with --log-level or under [log].",
    ),
    "VS1041": (
        "An address is not of the form HOST:PORT.",
        "Write it like 127.0.0.1:9441; port 0 takes a free one.",
    ),
    "VS1042": (
        "The configuration file has a section or a key that there is not. Unknown names are "
        "refused, so that a slip of the pen is not passed over in silence.",
        "Use the name that the message proposes; `vswitchd config check FILE` checks the whole "
        "file.",
    ),
    "VS1043": (
        "A setting has a value of the wrong type.",
        "Correct it where the message says: in the file, or in the environment variable that it "
        "names.",
    ),
    "VS1044": (
        "The configuration file can't be read.",
        "Check the path given by --config, and that this user may read it.",
    ),
    "VS1045": (
        "The configuration file is not TOML, or a setting stands outside a section.",
        "Mend the line that the message names; settings stand under [controller], [processor], "
        "[limits] or [log].",
    ),
    "VS1048": (
        "A setting that an SP can't do without is missing: its name, or an address for hosts.",
        "Give it with --name or --nbd, or under [processor].",
    ),
    "VS1049": (
        "The address of the VSM or of the peer listener stands for every address of a machine. "
        "Others are told it as it stands, and could not reach this SP by it.",
        "Write the address of this machine by which the controller and the other SPs reach it.",
    ),
    "VS1050": (
        "The page token of a list request did not come from this server.",
        "Ask for the first page, with no token, and go on with the tokens in the answers.",
    ),
    "VS1051": (
        "An operation's priority is out of bounds.",
        "Give one from 0 (last) to 9 (first); 5 is what operations have by themselves.",
    ),
    "VS1060": (
        "The words on the command line contradict each other.",
        "Follow the message; --help after a command shows its options.",
    ),
    # 2: something is not there, or is there already.
    "VS1070": (
        "The quickstart's directory can't be made or written.",
        "Give another one with --dir (`make run DATA=dir`).",
    ),
    "VS1071": (
        "The file in which the quickstart keeps its ports is damaged.",
        "Remove the file that the message names; ports are then chosen anew.",
    ),
    "VS2011": (
        "A layout names a device that this SP does not reach, or that is down there.",
        "Look at `vswitchctl device list`: the device must have the SP among its SPs, and be up.",
    ),
    "VS2012": (
        "The volume has no leg of that description.",
        "Name a leg by the SP that homes all of it, by a T1 id in it, or by its number from 0 in "
        "the outermost mirror; `vswitchctl volume show NAME --tree` shows them.",
    ),
    "VS2013": (
        "A change was asked for of a volume that does not exist, or no longer does.",
        "Create it first; `vswitchctl volume list` shows what there is.",
    ),
    "VS2014": (
        "The SP serves this volume already.",
        "Nothing needs to be done: hosts can connect there.",
    ),
    "VS2015": (
        "The SP does not serve this volume, so it can't stop.",
        "Name one of the SPs that the message lists.",
    ),
    "VS2016": (
        "The volume has nothing to move on the SP that was named as the source.",
        "Name with --from an SP that homes T1 objects of the volume; the message lists them.",
    ),
    "VS2020": (
        "The engine does not know the device, file, T1 object or volume that a call names. A "
        "file device that does not exist is made only if a size is given.",
        "Check the path or name. For a new file give --size; for an object look at "
        "`vswitchctl volume show NAME`.",
    ),
    "VS2021": (
        "The engine holds something else there already: another object on these extents or under "
        "this id, another volume of the same name, or the same device opened by another path.",
        "Compare what the message names with `vswitchctl device list` and "
        "`vswitchctl volume list`; take another name or path.",
    ),
    "VS2030": (
        "There is a volume of this name, or one is being made.",
        "Choose another name. To say a request again safely, give it the same --request-id.",
    ),
    "VS2031": (
        "There is a device of this name.",
        "Give another one with --name.",
    ),
    "VS2040": (
        "The controller knows no SP of this name.",
        "Check the spelling against `vswitchctl sp list`, or start the SP with this --controller.",
    ),
    "VS2041": (
        "There is no volume of this name.",
        "Check the spelling against `vswitchctl volume list`.",
    ),
    "VS2042": (
        "There is no operation of this id.",
        "Look for it in `vswitchctl operation list`.",
    ),
    "VS2043": (
        "There is no device of this name or id.",
        "Check the spelling against `vswitchctl device list`.",
    ),
    "VS2044": (
        "The SP does not reach this device, so there is no path to take away.",
        "Name an SP that `vswitchctl device show NAME` lists.",
    ),
    "VS2045": (
        "There is no plan of that id for that volume. Plans that were shown are kept with the "
        "operations that have ended, and the oldest of those are forgotten.",
        "Ask for a new plan with --dry-run, look at it, and apply that.",
    ),
    "VS2046": (
        "A volume's history has no such version.",
        "See `vswitchctl volume history NAME` for those it had.",
    ),
    "VS2047": (
        "A controller was asked to recover a cluster, and no SP of one has come to it.",
        "Start the SPs with this controller's address (their --controller), wait a moment, "
        "and try again.",
    ),
    "VS2048": (
        "There is nothing of that name to explain.",
        "List what there is with `vswitchctl volume list`, `sp list`, `device list` or "
        "`operation list`.",
    ),
    "VS2050": (
        "No error has this code.",
        "Codes are VS and four digits, as they stand at the front of an error's text.",
    ),
    "VS2051": (
        "The SP that --sp names holds no T2 object of this volume: it does not serve the volume, "
        "or is down.",
        "Name one of the SPs in the message, or leave --sp away.",
    ),
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
    "VS6010": (
        "Removing this leg would leave no leg in sync, and so lose data.",
        "Add another leg and let it come into sync first (`vswitchctl volume mirror add`).",
    ),
    "VS6011": (
        "This SP is the last that serves the volume; hosts would lose it.",
        "Let another SP serve it first (`vswitchctl volume serve`), or delete the volume.",
    ),
    "VS6012": (
        "SPs are lost, and the volume can't go on without them: what they hold is nowhere else, or "
        "too few of a mirror's legs are left to vote. Of two legs one and the controller's store "
        "are enough, of three it takes two. Going on with fewer could bring back old data.",
        "Bring an SP back; hosts wait meanwhile.",
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
}
