//! Phase one. In: a batch. Out: each key once in the order of first use, a route per event and key, and what could not
//! be decoded. Never: touches a document.

use std::sync::Arc;

use super::cache::Document;
use super::{Handler, Runtime, StagedKey, Staging};
use crate::contract::{self, Batch, Key, Rejection, Route, Staged};

impl<H: Handler> Runtime<H> {
    /// Decodes and keeps the events. What was not applied of the batch before is forgotten.
    ///
    /// # Panics
    /// If a span lies outside the blob, or text is not UTF-8.
    pub fn stage(&mut self, batch: Batch) -> Staged {
        if let Some(forgotten) = self.staged.take() {
            self.release(&forgotten.keys);
        }
        self.cache.begin_batch();

        let batch = Arc::new(batch);
        let count = batch.events.len();
        let mut keys = Vec::new();
        let mut units = Vec::with_capacity(count);
        let mut staged =
            Staged { keys: Vec::new(), routes: Vec::with_capacity(count), rejections: Vec::new(), blob: Vec::new() };
        for (number, envelope) in (0..).zip(&batch.events) {
            let unit = H::decode(&batch, *envelope).and_then(|unit| {
                if let Some(unit) = &unit {
                    self.route(number, unit, &mut keys, &mut staged).map_err(|()| {
                        let event_type = contract::text(&batch.blob, envelope.event_type);
                        format!("event type `{event_type}` gives an empty key (does the event name its aggregate?)")
                    })?;
                }
                Ok(unit)
            });
            units.push(unit.unwrap_or_else(|reason| {
                let reason = contract::append(&mut staged.blob, reason.as_bytes());
                staged.rejections.push(Rejection { event: number, reason });
                None
            }));
        }
        self.staged = Some(Staging { units, keys, routes: staged.routes.clone(), folded: Vec::new() });
        staged
    }

    /// Adds the routes of one event; an empty key is none.
    fn route(&mut self, event: u32, unit: &H::Unit, keys: &mut Vec<StagedKey>, staged: &mut Staged) -> Result<(), ()> {
        let touched = H::keys(unit);
        if touched.iter().any(str::is_empty) {
            return Err(());
        }
        let starts = H::starts(unit);
        for name in touched.iter() {
            let slot = self.cache.find_or_insert(name);
            let mark = self.cache.mark(slot);
            let key = match mark.key {
                Some(_) if mark.event == event => continue,
                Some(key) => key,
                None => {
                    let key = contract::number(keys.len());
                    keys.push(StagedKey { slot, applied: None, refused: false });
                    if H::STATELESS {
                        self.cache.slot_mut(slot).document = Document::Absent;
                    }
                    let name = contract::append(&mut staged.blob, name.as_bytes());
                    staged.keys.push(Key { name, cached: self.cache.slot(slot).is_known() });
                    key
                }
            };
            self.cache.set_mark(slot, key, event);
            staged.routes.push(Route { event, key, starts });
        }
        Ok(())
    }
}
