"""What was asked makes no sense (1), or is about something that is not there or is there already
(2).
"""

TEXTS: dict[str, tuple[str, str]] = {
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
    "VS1047": (
        "The tag of an iSCSI portal group is none.",
        "Give each SP of the cluster another, from 1 to 65535, as iscsi_portal_group under "
        "[processor].",
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
    "VS1080": (
        "A line of hosttab, or a device on the command line, makes no sense. A line is a volume's "
        "name and its device, /dev/nbdN or '-' for any; no volume and no device is named twice.",
        "Mend the line that the message names.",
    ),
    "VS1081": (
        "An SP tells hosts a unix socket, or something else that is no HOST:PORT. A volume is "
        "attached over TCP, where both ends of a connection tell it apart from all others.",
        "Let the SP listen on TCP, or say how hosts reach it ([processor] nbd, nbd_advertised).",
    ),
    "VS1082": (
        "A time-out of the host service is too short. What was asked over one path may take effect "
        "for two seconds, so it must not be asked over another before; and with hold_seconds 0 "
        "the kernel has no patience at all.",
        "Set timeout_seconds in [host] to 3 or more, and hold_seconds to 1 or more.",
    ),
    "VS1090": (
        "What should be an initiator's name is none. iSCSI names are of three kinds: iqn. with a "
        "year and month, a domain name backwards and whatever tells the host apart; eui. with 16 "
        "hex digits; naa. with 16 or 32. Capital letters count as small ones.",
        "Give the name that the host has: on Linux `cat /etc/iscsi/initiatorname.iscsi`, on "
        "others the iSCSI initiator's settings.",
    ),
    "VS1091": (
        "A name or a secret for CHAP can't be used. A secret is one line of text of 12 to 255 "
        "bytes: fewer than 96 bits could be guessed from what passes over the network. What it is "
        "is shown nowhere.",
        "Make one, e.g. with `openssl rand -hex 16 > FILE`, and name the file.",
    ),
    "VS1092": (
        "What an initiator shows and what the target shows do not go together: mutual CHAP needs "
        "CHAP, and another secret. With the same one for both, whoever asks one side the other "
        "side's question has the answer (RFC 7143, 9.2.1).",
        "Give --chap-user and --chap-secret-file too, and a secret of its own to each side.",
    ),
    "VS1093": (
        "A volume has as many initiators in its list as it can have.",
        "Deny one that is not used any more; `vswitchctl volume access list` shows them.",
    ),
    "VS1094": (
        "The file that should hold a secret can't be read, or holds no text.",
        "Name a file that you may read, with the secret as its one line, or - for standard input.",
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
    "VS2060": (
        "The volume that was attached is gone, and another has been made under its name. The "
        "device stays the old one, which nobody serves.",
        "Unmount what is on it, `vswitchctl host detach` it, and attach the volume again.",
    ),
    "VS2061": (
        "The volume is attached on this host already, as another device.",
        "Use that device, or detach it first.",
    ),
    "VS2062": (
        "The volume is not attached on this host.",
        "Look at `vswitchctl host list`; volumes of hosttab go away with --boot.",
    ),
}
