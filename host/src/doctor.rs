//! What stands between this Millstream and a quiet night: settings of the server, its streams and its buckets that will hurt later. In:
//! facts, gathered without a trace. Out: findings, each with the command that mends it. Never: writes anything, or mends it itself.
//!
//! | file | asks |
//! |---|---|
//! | `gather.rs`, `gather/` | what is there: the only file that talks to the server |
//! | `facts.rs` | what that looks like, as plain data |
//! | `server.rs` | version, JetStream, flushing, clocks |
//! | `replicas.rs` | would one broken disk take it away |
//! | `retention.rs` | do input streams keep what is not decided |
//! | `room.rs` | can our own streams take and keep what comes |
//! | `windows.rs` | are second sendings recognised for long enough |
//! | `buckets.rs` | are streams and buckets with our names ours, and as we made them |
//! | `lanes.rs` | do handlers whose documents are gathered in one bucket keep to their own keys |
//! | `permissions.rs` | may this user do all that a host does |
//! | `orphans.rs` | what nobody needs any more |
//! | `running.rs` | does anybody run what is deployed |

mod buckets;
pub mod facts;
mod finding;
mod gather;
mod lanes;
mod orphans;
mod permissions;
mod replicas;
mod retention;
mod room;
mod running;
mod server;
mod windows;

pub use finding::{Finding, Severity};
pub use gather::{Ask, Error, gather};

use facts::Facts;

/// All that is to be said of these facts, the worst first.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let topics = [
        server::judge,
        running::judge,
        permissions::judge,
        buckets::judge,
        lanes::judge,
        retention::judge,
        room::judge,
        windows::judge,
        replicas::judge,
        orphans::judge,
    ];
    let mut findings: Vec<Finding> = topics.iter().flat_map(|judge| judge(facts)).collect();
    // Stable: within a severity they stay in the order of the topics.
    findings.sort_by_key(|finding| finding.severity);
    findings
}
