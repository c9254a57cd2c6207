//! Which parts of a device are free, and whether proposed extents may be taken. Pure.

use crate::error::{DeviceError, ErrorKind};
use crate::label::{ExtentSpec, Label, T1Spec};

/// Free runs (offset, length) of a labelled device, in order.
#[must_use]
pub fn free(label: &Label) -> Vec<(u64, u64)> {
    let mut taken: Vec<(u64, u64)> = label
        .t1s
        .iter()
        .flat_map(|entry| &entry.t1.extents)
        .filter(|extent| extent.device == label.device)
        .map(|extent| (extent.offset, extent.offset + extent.length))
        .collect();
    taken.sort_unstable();
    let mut runs = Vec::new();
    let mut at = label.data();
    for (start, end) in taken {
        if start > at {
            runs.push((at, start - at));
        }
        at = at.max(end);
    }
    if label.size > at {
        runs.push((at, label.size - at));
    }
    runs
}

/// The parts of a device (offset, length) that extents cover, in order; those that touch are one.
#[must_use]
pub fn runs(extents: &[ExtentSpec], device: &str) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = extents
        .iter()
        .filter(|extent| extent.device == device)
        .map(|extent| (extent.offset, extent.length))
        .collect();
    all.sort_unstable();
    all.dedup_by(|next, run| {
        let touch = run.0 + run.1 == next.0;
        if touch {
            run.1 += next.1;
        }
        touch
    });
    all
}

/// Checks that the object's extents on this device are aligned, within it, and nobody else's.
/// Takes n log n time of all extents.
///
/// # Errors
/// `Invalid` or `Exists`, naming the extent and whose it is.
pub fn check(label: &Label, t1: &T1Spec) -> Result<(), DeviceError> {
    let at = |extent: &ExtentSpec| {
        format!("{}+{} on device {}", extent.offset, extent.length, label.device)
    };
    let mut here: Vec<(u64, u64, &ExtentSpec)> = Vec::new();
    for extent in t1.extents.iter().filter(|extent| extent.device == label.device) {
        let end = extent.offset.checked_add(extent.length).filter(|&end| end <= label.size);
        let aligned = extent.offset.is_multiple_of(label.unit)
            && extent.length.is_multiple_of(label.unit)
            && extent.length > 0;
        match end {
            Some(end) if aligned && extent.offset >= label.data() => {
                here.push((extent.offset, end, extent));
            }
            _ => {
                let text = format!(
                    "T1 object {}: extent {} is not within the device or not a multiple of {}",
                    t1.id,
                    at(extent),
                    label.unit
                );
                return Err(DeviceError::new(ErrorKind::Invalid, text));
            }
        }
    }
    here.sort_unstable_by_key(|&(offset, end, _)| (offset, end));
    if let Some(pair) = here.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let text = format!("T1 object {}: names extent {} twice", t1.id, at(pair[1].2));
        return Err(DeviceError::new(ErrorKind::Invalid, text));
    }
    for entry in label.t1s.iter().filter(|entry| entry.t1.id != t1.id) {
        for other in entry.t1.extents.iter().filter(|other| other.device == label.device) {
            let first = here.partition_point(|&(_, end, _)| end <= other.offset);
            let Some(&(offset, _, extent)) = here.get(first) else { continue };
            if offset < other.offset + other.length {
                let text = format!(
                    "T1 object {}: extent {} belongs to T1 object {} of volume {}",
                    t1.id,
                    at(extent),
                    entry.t1.id,
                    entry.t1.volume
                );
                return Err(DeviceError::new(ErrorKind::Exists, text));
            }
        }
    }
    Ok(())
}
