//! Edits of each Wikipedia page. Shows keys that no NATS subject could hold (`#en.wikipedia|Talk:Oswald Tilghman`), and the
//! time of the envelope in the document.

use millstream_sdk::prelude::*;

/// One document per page, under its aggregate id.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PageEdits {
    /// Edits so far, with the page's creation.
    pub events: u64,
    /// Characters added less characters deleted.
    pub delta: i64,
    /// Who edited last.
    pub user: String,
    /// When, as RFC 3339 in UTC with milliseconds.
    pub timestamp: String,
}

/// What happens to a page.
#[derive(Debug, Event)]
pub enum Page {
    /// It was created or edited; both have the same payload.
    #[event(name = "PageEdited", alias = "PageCreated")]
    Edited {
        /// Characters added less characters deleted.
        delta: i64,
        /// The name or address of the editor.
        user: String,
    },
}

impl Projection for PageEdits {
    const NAME: &'static str = "page-edits";
    const SUBJECTS: &'static [&'static str] = &["edits.>"];
    type Event = Page;

    fn key(event: &Recorded<Page>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn apply(&mut self, event: &Recorded<Page>) -> Verdict {
        let Page::Edited { delta, user } = &event.payload;
        self.events += 1;
        self.delta += delta;
        self.user.clone_from(user);
        self.timestamp = event.time_rfc3339();
        keep()
    }
}

export!(PageEdits);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    const PAGE: &str = "#en.wikipedia|Talk:Oswald Tilghman";

    fn edit(event_type: &str, user: &str, delta: i64) -> TestEvent {
        event(event_type, json!({ "user": user, "delta": delta, "cityName": null }))
            .aggregate(PAGE)
            .at("2015-09-12T00:46:58.771Z")
    }

    #[test]
    fn a_page_sums_its_edits_and_names_the_last_editor() {
        given::<PageEdits>([edit("PageCreated", "GELongstreet", 36)])
            .when(edit("PageEdited", "Zoë", -40).at("2015-09-12T01:00:00Z"))
            .then_document(
                PAGE,
                &json!({ "events": 2, "delta": -4, "user": "Zoë", "timestamp": "2015-09-12T01:00:00.000Z" }),
            );
    }

    #[test]
    fn pages_are_told_apart_by_channel_and_name() {
        given::<PageEdits>([edit("PageEdited", "A", 1)])
            .when(edit("PageEdited", "B", 2).aggregate("#de.wikipedia|Talk:Oswald Tilghman"))
            .then_document(
                "#de.wikipedia|Talk:Oswald Tilghman",
                &PageEdits { events: 1, delta: 2, user: "B".into(), timestamp: "2015-09-12T00:46:58.771Z".into() },
            )
            .then_document(
                PAGE,
                &PageEdits { events: 1, delta: 1, user: "A".into(), timestamp: "2015-09-12T00:46:58.771Z".into() },
            );
    }

    #[test]
    fn an_edit_without_a_user_is_rejected() {
        given::<PageEdits>([])
            .when(event("PageEdited", json!({ "user": null, "delta": 1 })).aggregate(PAGE))
            .then_rejected("invalid type: null, expected a string");
    }
}
