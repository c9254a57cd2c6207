//! What commands lead to.

use proptest::prelude::*;
use vs_wire::scsi::cdb::needs;
use vs_wire::scsi::unit::{Action, Unit, decide};

proptest! {
    /// Whatever a CDB says, nothing that is decided on reaches beyond the unit.
    #[test]
    fn no_cdb_reaches_beyond_the_unit(
        cdb: [u8; 16],
        known in prop::sample::select(vec![
            0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x34,
            0x35, 0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89, 0x8a, 0x8b, 0x8e,
            0x8f, 0x90, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf,
        ]),
        small: bool,
        data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let unit = Unit { size: 1 << 20, serial: "s".into(), ..Unit::default() };
        let blocks = unit.size / 512;
        let mut cdb = cdb;
        cdb[0] = known;
        if small {
            // Somewhere in the unit, so that more than its refusals is met.
            cdb[1] &= 0x1f;
            cdb[2..9].fill(0);
            cdb[10..12].fill(0);
        }
        let within = |extent: &vs_wire::scsi::cdb::Extent| {
            extent.lba <= blocks && extent.blocks <= blocks - extent.lba
        };
        match decide(Some(&unit), &cdb, &data) {
            Action::Read(extent)
            | Action::Write { extent, .. }
            | Action::Same(extent)
            | Action::Change { extent, .. }
            | Action::Zero { extent, .. }
            | Action::Verify { extent, .. }
            | Action::Status(extent) => prop_assert!(within(&extent), "{extent:?}"),
            Action::Unmap(extents) => prop_assert!(extents.iter().all(within)),
            Action::Reply(_)
            | Action::ConditionMet
            | Action::Fail(_)
            | Action::Flush
            | Action::Copy(_)
            | Action::Copied { .. }
            | Action::Reservation
            | Action::Reserve => {}
        }
        let none = matches!(decide(None, &cdb, &data), Action::Reply(_) | Action::Fail(_));
        prop_assert!(none && needs(&cdb) <= 16 << 20);
    }
}
