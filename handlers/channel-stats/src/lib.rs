//! Edits of each Wikipedia channel. Shows a key taken from the payload, and a document that grows: the distinct users are a
//! sorted set, so that the same users always make the same bytes.

use std::collections::BTreeSet;

use millstream_sdk::prelude::*;

/// One document per channel.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelStats {
    /// Edits so far.
    pub events: u64,
    /// Characters added.
    pub added: u64,
    /// Characters deleted.
    pub deleted: u64,
    /// Edits by robots.
    pub robots: u64,
    /// Edits by people without an account.
    pub anonymous: u64,
    /// Edits that created a page.
    pub created: u64,
    /// Everyone who edited.
    pub users: BTreeSet<String>,
}

/// What happens in a channel.
#[derive(Debug, Event)]
pub enum Edit {
    /// A page was created or edited.
    #[event(name = "PageEdited", alias = "PageCreated")]
    #[serde(rename_all = "camelCase")]
    Edited {
        /// The channel: `#en.wikipedia`.
        channel: String,
        /// The name or address of the editor.
        user: String,
        /// Characters added.
        added: u64,
        /// Characters deleted.
        deleted: u64,
        /// Whether a robot did it.
        is_robot: bool,
        /// Whether the editor has no account.
        is_anonymous: bool,
        /// Whether the page was created.
        is_new: bool,
    },
}

impl Projection for ChannelStats {
    const NAME: &'static str = "channel-stats";
    const SUBJECTS: &'static [&'static str] = &["edits.>"];
    type Event = Edit;

    fn key(event: &Recorded<Edit>) -> Keys<'_> {
        let Edit::Edited { channel, .. } = &event.payload;
        Keys::one(channel)
    }

    fn apply(&mut self, event: &Recorded<Edit>) -> Verdict {
        let Edit::Edited { channel: _, user, added, deleted, is_robot, is_anonymous, is_new } = &event.payload;
        self.events += 1;
        self.added += added;
        self.deleted += deleted;
        self.robots += u64::from(*is_robot);
        self.anonymous += u64::from(*is_anonymous);
        self.created += u64::from(*is_new);
        if !self.users.contains(user) {
            self.users.insert(user.clone());
        }
        keep()
    }
}

export!(ChannelStats);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn edit(user: &str, is_new: bool) -> TestEvent {
        let payload = json!({
            "channel": "#en.wikipedia", "user": user, "added": 36, "deleted": 2,
            "isRobot": user == "Bot", "isAnonymous": user == "60.225.66.142", "isNew": is_new, "metroCode": null,
        });
        event(if is_new { "PageCreated" } else { "PageEdited" }, payload)
    }

    #[test]
    fn a_channel_counts_its_edits_and_distinct_users() {
        given::<ChannelStats>([edit("Bot", true), edit("60.225.66.142", false), edit("Zoë", false)])
            .when(edit("Bot", false))
            .then_document(
                "#en.wikipedia",
                &json!({
                    "events": 4, "added": 144, "deleted": 8, "robots": 2, "anonymous": 1, "created": 1,
                    "users": ["60.225.66.142", "Bot", "Zoë"],
                }),
            );
    }

    #[test]
    fn an_edit_that_names_no_channel_is_rejected() {
        given::<ChannelStats>([]).when(event("PageEdited", json!({}))).then_rejected("missing field `channel`");
        given::<ChannelStats>([]).when(event("PageDeleted", json!({}))).then_irrelevant();
    }
}
