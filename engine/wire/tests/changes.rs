//! Changes that depend on what is there, against a plain model, and how peers say them.

use proptest::prelude::*;
use vs_wire::change::{Change, UNIT, fits};
use vs_wire::peer::{Op, Reply, Request, Status};
use vs_wire::scsi::cdb::{Extent, needs};
use vs_wire::scsi::sense::{INVALID_FIELD, OUT_OF_RANGE};
use vs_wire::scsi::unit::{Action, Unit, decide};

/// Bytes of few kinds, so that they are often the same.
fn bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 0, 0, 0, 0, 0, 0, 1, 0x80]), length)
}

fn compare_and_write(lba: u64, blocks: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[13] = blocks;
    cdb
}

proptest! {
    #[test]
    fn what_is_written_depends_on_what_was_there(
        found in bytes(24), wanted in bytes(24), new in bytes(24), same: bool,
    ) {
        let wanted = if same { found.clone() } else { wanted };
        let given = [wanted.clone(), new.clone()].concat();
        let first = (0..24u32).find(|at| found[*at as usize] != wanted[*at as usize]);
        prop_assert_eq!(Change::CompareWrite.apply(&found, &given), first.map_or(Ok(new), Err));
        let set: Vec<u8> = (0..24).map(|at| found[at] | wanted[at]).collect();
        prop_assert_eq!(Change::Or.apply(&found, &wanted), Ok(set.clone()));
        prop_assert_eq!(Change::Or.apply(&set, &wanted), Ok(set.clone()), "again is no more");
    }

    /// Of hosts that count in a block, each trying again when another was first, no step is lost.
    #[test]
    fn a_counter_counts_each_step(steps in prop::collection::vec(0usize..4, 1..200)) {
        let mut block = [0u8; 4];
        let mut seen = [block; 4];
        let mut counted = 0u32;
        for host in steps {
            let next = (u32::from_le_bytes(seen[host]) + 1).to_le_bytes();
            let given = [seen[host], next].concat();
            match Change::CompareWrite.apply(&block, &given) {
                Ok(new) => {
                    block.copy_from_slice(&new);
                    counted += 1;
                }
                Err(at) => prop_assert_ne!(block[at as usize], seen[host][at as usize]),
            }
            seen[host] = block;
        }
        prop_assert_eq!(u32::from_le_bytes(block), counted);
    }

    #[test]
    fn a_change_that_fits_is_in_one_unit(offset in 0u64..1 << 20, length in 0u64..10_000) {
        let one = length > 0 && offset / UNIT == (offset + length - 1) / UNIT;
        prop_assert_eq!(fits(offset, length), one);
        let payload = Change::CompareWrite.gives(length) as u32;
        let request = Request {
            op: Op::CompareWrite, flags: 0, handle: 1, id: 2, epoch: 3, offset, length, payload,
            until: 0,
        };
        let decoded = |request: Request| {
            let mut out = Vec::new();
            request.encode(&mut out);
            Request::decode(&out)
        };
        prop_assert_eq!(decoded(request).is_ok(), one);
        if one {
            prop_assert_eq!(decoded(request), Ok(Some(request)));
            let longer = Request { payload: payload + 1, ..request };
            prop_assert!(decoded(longer).is_err());
            let or = Request { op: Op::Or, payload: length as u32, ..request };
            prop_assert_eq!(decoded(or), Ok(Some(or)));
        }
    }

    #[test]
    fn one_block_is_compared_and_written(
        lba in 0u64..4096, blocks: u8, short in 0usize..3, flags in 0u8..4,
    ) {
        let unit = Unit { size: 1 << 20, ..Unit::default() };
        let mut cdb = compare_and_write(lba, blocks);
        // DPO and FUA.
        cdb[1] = flags << 3;
        prop_assert_eq!(needs(&cdb), u64::from(blocks) * 1024);
        let brought = vec![0; (needs(&cdb) as usize).saturating_sub(short)];
        let extent = Extent { lba, blocks: blocks.into() };
        let action = decide(Some(&unit), &cdb, &brought);
        let wanted = if lba + u64::from(blocks) > 2048 || lba >= 2048 {
            Action::Fail(OUT_OF_RANGE)
        } else if blocks > 1 || brought.len() as u64 != needs(&cdb) {
            Action::Fail(INVALID_FIELD)
        } else {
            Action::Change { change: Change::CompareWrite, extent, fua: flags & 1 != 0 }
        };
        prop_assert_eq!(action, wanted);
    }
}

#[test]
fn what_differs_is_told() {
    for status in [Status::Differs, Status::Unsure] {
        let reply = Reply { status, id: 7, payload: 4, clock: 1 };
        let mut out = Vec::new();
        reply.encode(&mut out);
        assert_eq!(Reply::decode(&out), Ok(Some(reply)));
    }
}
