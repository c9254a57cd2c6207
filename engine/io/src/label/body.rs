//! What stands in a label, and how.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Entry, ExtentSpec, Kept, Label, T1Spec};

/// A label as it is written. A T1 object may have a hundred thousand extents, so devices are
/// named once for all, and an extent is two numbers of units.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body<'a> {
    #[serde(borrow)]
    cluster: Cow<'a, str>,
    #[serde(borrow)]
    device: Cow<'a, str>,
    size: u64,
    unit: u64,
    region: u64,
    /// Left away where there are none, so that an older engine can read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    checksums: bool,
    #[serde(borrow)]
    maps: Vec<Cow<'a, str>>,
    /// Ids of the devices that extents lie on; extents name them by their place here.
    #[serde(borrow)]
    devices: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    t1s: Vec<BodyEntry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyEntry<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    volume: Cow<'a, str>,
    size: u64,
    #[serde(borrow)]
    home: Cow<'a, str>,
    epoch: u64,
    ready: u64,
    /// In order: [device, offset, length, offset, length, ...] for each stretch of extents
    /// that follow one another on one device; offsets and lengths in units.
    extents: Vec<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<(u64, u64, String)>,
}

impl<'a> Body<'a> {
    /// None if an extent is not made of whole units.
    pub(super) fn of(label: &'a Label) -> Option<Body<'a>> {
        let mut body = Body {
            cluster: Cow::Borrowed(&label.cluster),
            device: Cow::Borrowed(&label.device),
            size: label.size,
            unit: label.unit,
            region: label.region,
            checksums: label.checksums,
            maps: label.maps.iter().map(|sp| Cow::Borrowed(sp.as_str())).collect(),
            devices: Vec::new(),
            t1s: Vec::with_capacity(label.t1s.len()),
        };
        let mut places: HashMap<&str, u64> = HashMap::new();
        for Entry { t1, epoch, ready, kept } in &label.t1s {
            let mut extents: Vec<Vec<u64>> = Vec::new();
            for extent in &t1.extents {
                let place = *places.entry(&extent.device).or_insert_with(|| {
                    body.devices.push(Cow::Borrowed(&extent.device));
                    body.devices.len() as u64 - 1
                });
                if !extent.offset.is_multiple_of(label.unit)
                    || !extent.length.is_multiple_of(label.unit)
                {
                    return None;
                }
                let numbers = [extent.offset / label.unit, extent.length / label.unit];
                match extents.last_mut() {
                    Some(stretch) if stretch[0] == place => stretch.extend(numbers),
                    _ => extents.push(vec![place, numbers[0], numbers[1]]),
                }
            }
            body.t1s.push(BodyEntry {
                id: Cow::Borrowed(&t1.id),
                volume: Cow::Borrowed(&t1.volume),
                size: t1.size,
                home: Cow::Borrowed(&t1.home),
                epoch: *epoch,
                ready: *ready,
                extents,
                kept: kept.as_ref().map(|kept| kept.text()),
            });
        }
        Some(body)
    }

    /// None for what no encoder writes.
    pub(super) fn label(self) -> Option<Label> {
        let mut t1s = Vec::with_capacity(self.t1s.len());
        for entry in self.t1s {
            let mut extents = Vec::new();
            for stretch in &entry.extents {
                let (&place, numbers) = stretch.split_first()?;
                let device = self.devices.get(usize::try_from(place).ok()?)?;
                let (pairs, []) = numbers.as_chunks::<2>() else { return None };
                for [offset, length] in pairs {
                    extents.push(ExtentSpec {
                        device: device.clone().into_owned(),
                        offset: offset.checked_mul(self.unit)?,
                        length: length.checked_mul(self.unit)?,
                    });
                }
            }
            let t1 = T1Spec {
                id: entry.id.into_owned(),
                volume: entry.volume.into_owned(),
                size: entry.size,
                extents,
                home: entry.home.into_owned(),
            };
            let kept = match &entry.kept {
                Some(text) => Some(Arc::new(Kept::of(text)?)),
                None => None,
            };
            t1s.push(Entry { t1, epoch: entry.epoch, ready: entry.ready, kept });
        }
        Some(Label {
            cluster: self.cluster.into_owned(),
            device: self.device.into_owned(),
            size: self.size,
            unit: self.unit,
            region: self.region,
            checksums: self.checksums,
            maps: self.maps.into_iter().map(Cow::into_owned).collect(),
            t1s,
        })
    }
}
