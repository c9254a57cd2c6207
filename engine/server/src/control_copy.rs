//! Control calls about copies.

use crate::active::{Copy, CopyState, Mode};
use crate::control::{Engine, Failure, json, lock, parse};
use crate::copy;
use crate::event_loop::Loop;
use crate::mailbox::Message;

impl Engine {
    /// Copies onto the write-only leg at `path` what lies from `start` on: an earlier copy onto
    /// it has made durable what is before. At most `rate` bytes per second (0: no limit), and,
    /// `adaptive`, less while hosts suffer. A comparison has an empty path. One that runs or is done
    /// stays, with these limits.
    ///
    /// # Errors
    /// `precondition` unless this SP owns the volume and a write-only leg is there; or, for a
    /// comparison, legs that no resync has to make alike.
    pub fn copy_start(
        &self,
        id: &str,
        path: Vec<usize>,
        start: u64,
        rate: u64,
        adaptive: bool,
        mode: &str,
    ) -> Result<(), Failure> {
        let volume = self
            .volume(id)
            .ok_or_else(|| Failure::new("not_found", format!("volume {id} is not served here")))?;
        let mode: Mode = parse("mode", &format!("\"{mode}\""))?;
        let _control = lock(&volume.control);
        let active = volume.active();
        let fits = if mode.compares() {
            path.is_empty() && active.tree.has_mirror() && !active.pinned
        } else {
            copy::is_write_only(&active.tree, &path)
        };
        if !active.tree.is_owner() || !fits {
            let text = format!(
                "volume {}: no write-only leg at {path:?} (or, to compare, legs that are being \
                 resynced), or another SP is the owner",
                volume.name
            );
            return Err(Failure::new("precondition", text));
        }
        let mut copies = volume.copies();
        // A comparison that is done says how it was then.
        let over = |copy: &Copy| {
            copy.state == CopyState::Failed
                || (copy.state == CopyState::Done && copy.mode.compares())
        };
        copies.retain(|copy| copy.path != path || copy.resync || !over(copy));
        let known = copies.iter_mut().find(|copy| copy.path == path && !copy.resync);
        if let Some(copy) = known {
            (copy.limit, copy.adaptive) = (rate, adaptive);
        } else {
            let mut new = Copy::new(id, path, false);
            new.mode = mode;
            new.total = copy::total(&active.tree, &new);
            new.start = start.min(new.total) / copy::REGION * copy::REGION;
            (new.copied, new.durable) = (new.start, new.start);
            (new.limit, new.adaptive) = (rate, adaptive);
            copies.push(new);
        }
        drop(copies);
        self.kick(id);
        Ok(())
    }

    /// Changes the limits of a copy.
    ///
    /// # Errors
    /// `not_found` if there is none.
    pub fn copy_throttle(
        &self,
        id: &str,
        path: &[usize],
        rate: u64,
        adaptive: bool,
    ) -> Result<(), Failure> {
        if let Some(volume) = self.volume(id) {
            let mut copies = volume.copies();
            let known = copies.iter_mut().find(|copy| copy.path == path && !copy.resync);
            if let Some(copy) = known {
                (copy.limit, copy.adaptive) = (rate, adaptive);
                drop(copies);
                self.kick(id);
                return Ok(());
            }
        }
        Err(Failure::new("not_found", format!("volume {id}: no copy onto {path:?} is here")))
    }

    /// Stops a copy; one that is not there is fine.
    ///
    /// # Errors
    /// None at present.
    pub fn copy_stop(&self, id: &str, path: &[usize]) -> Result<(), Failure> {
        if let Some(volume) = self.volume(id) {
            volume.copies().retain(|copy| copy.resync || copy.path != path);
            self.kick(id);
        }
        Ok(())
    }

    fn kick(&self, id: &str) {
        let index = Loop::copy_loop(id, self.shared.mailboxes.len());
        self.shared.mailboxes[index].post(Message::Copy(id.to_owned()));
    }

    /// JSON list of copies; resyncs show in `t2s`.
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn copies(&self) -> Result<String, Failure> {
        let volumes = self.volumes_by_name();
        let copies = volumes.iter().flat_map(|volume| volume.copies().clone());
        json(&copies.filter(|copy| !copy.resync).collect::<Vec<_>>())
    }
}
