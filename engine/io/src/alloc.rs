//! Which parts of a device are free, and whether proposed extents may be taken. Pure.

use crate::device::LABEL_AREA;
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
    let mut at = LABEL_AREA;
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

/// Checks that the object's extents on this device are aligned, within it, and nobody else's.
///
/// # Errors
/// `Invalid` or `Exists`, naming the extent and whose it is.
pub fn check(label: &Label, t1: &T1Spec) -> Result<(), DeviceError> {
    let here: Vec<&ExtentSpec> =
        t1.extents.iter().filter(|extent| extent.device == label.device).collect();
    for (index, extent) in here.iter().enumerate() {
        let at = format!("{}+{} on device {}", extent.offset, extent.length, label.device);
        let end = extent.offset.checked_add(extent.length);
        let aligned = extent.offset.is_multiple_of(label.unit)
            && extent.length.is_multiple_of(label.unit)
            && extent.length > 0;
        if !aligned || extent.offset < LABEL_AREA || end.is_none_or(|end| end > label.size) {
            let text = format!(
                "T1 object {}: extent {at} is not within the device or not a multiple of {}",
                t1.id, label.unit
            );
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
        let clash = |other: &ExtentSpec| {
            other.device == label.device
                && other.offset < extent.offset + extent.length
                && extent.offset < other.offset + other.length
        };
        if here[..index].iter().any(|other| clash(other)) {
            let text = format!("T1 object {}: names extent {at} twice", t1.id);
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
        let others = label.t1s.iter().filter(|entry| entry.t1.id != t1.id);
        for entry in others {
            if entry.t1.extents.iter().any(clash) {
                let text = format!(
                    "T1 object {}: extent {at} belongs to T1 object {} of volume {}",
                    t1.id, entry.t1.id, entry.t1.volume
                );
                return Err(DeviceError::new(ErrorKind::Exists, text));
            }
        }
    }
    Ok(())
}
