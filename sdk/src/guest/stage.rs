//! Phase one. In: a batch. Out: each key once in the order of first use, a route per event and key, and what could not be
//! decoded. Touches no document.

use std::sync::Arc;

use super::{Runtime, StagedKey, Staging};
use crate::contract::{self, Batch, Key, Rejection, Route, Staged};
use crate::{Event, Projection, Recorded};

impl<P: Projection> Runtime<P> {
    /// Decodes and keeps the events. A batch that was staged but not applied is forgotten.
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
        let mut events = Vec::with_capacity(count);
        let mut staged =
            Staged { keys: Vec::new(), routes: Vec::with_capacity(count), rejections: Vec::new(), blob: Vec::new() };
        for number in 0..contract::number(count) {
            let recorded = decode::<P>(&batch, number).and_then(|recorded| {
                if let Some(recorded) = &recorded {
                    self.route(number, recorded, &mut keys, &mut staged)?;
                }
                Ok(recorded)
            });
            events.push(recorded.unwrap_or_else(|reason| {
                let reason = contract::append(&mut staged.blob, reason.as_bytes());
                staged.rejections.push(Rejection { event: number, reason });
                None
            }));
        }
        self.staged = Some(Staging { events, keys, routes: staged.routes.clone() });
        staged
    }

    /// Adds the routes of one event, or says why it has none.
    fn route(
        &mut self,
        event: u32,
        recorded: &Recorded<P::Event>,
        keys: &mut Vec<StagedKey>,
        staged: &mut Staged,
    ) -> Result<(), String> {
        let touched = P::key(recorded);
        if touched.iter().any(str::is_empty) {
            return Err(format!(
                "event type `{}` gives an empty key (does the event name its aggregate?)",
                recorded.event_type()
            ));
        }
        for name in touched.iter() {
            let slot = self.cache.find_or_insert(name);
            let mark = self.cache.mark(slot);
            let key = match mark.key {
                Some(_) if mark.event == event => continue,
                Some(key) => key,
                None => {
                    let key = contract::number(keys.len());
                    keys.push(StagedKey { slot, applied: None, refused: false });
                    let name = contract::append(&mut staged.blob, name.as_bytes());
                    staged.keys.push(Key { name, cached: self.cache.slot(slot).is_known() });
                    key
                }
            };
            self.cache.set_mark(slot, key, event);
            staged.routes.push(Route { event, key });
        }
        Ok(())
    }
}

fn decode<P: Projection>(batch: &Arc<Batch>, number: u32) -> Result<Option<Recorded<P::Event>>, String> {
    let Some(envelope) = batch.events.get(number as usize) else {
        return Ok(None);
    };
    let event_type = contract::text(&batch.blob, envelope.event_type);
    let payload = contract::bytes(&batch.blob, envelope.payload);
    match P::Event::decode(event_type, payload) {
        Ok(decoded) => Ok(decoded.map(|payload| Recorded::new(payload, Arc::clone(batch), *envelope))),
        Err(error) => Err(error.to_string()),
    }
}
