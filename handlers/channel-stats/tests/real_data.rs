//! 39,244 real Wikipedia edits give the answer that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use channel_stats::ChannelStats;
use real_data::answer_and_documents;

#[test]
fn the_counters_of_every_channel_are_as_computed_elsewhere() {
    let Some((answer, channels)) = answer_and_documents::<ChannelStats>("wikipedia-edits", "P3_channelStats") else {
        return;
    };
    let rows: Vec<_> = channels
        .iter()
        .map(|(key, channel)| {
            let ChannelStats { events, added, deleted, robots, anonymous, created, users } = channel;
            (key, events, added, deleted, robots, anonymous, created, users.len())
        })
        .collect();
    assert_eq!(serde_json::json!(rows), answer);
}
