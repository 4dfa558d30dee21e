//! Millstream: projections and sagas as sandboxed WASM on NATS JetStream, each event decided exactly once.
//!
//! The map, in the order of an event's journey:
//!
//! | file | what it does | what always holds |
//! |---|---|---|
//! | `pipeline.rs` | one batch's whole journey | the only file that knows the order of steps |
//! | `inputs.rs` | finds the streams of a handler | a user's stream is never created or altered |
//! | `intake.rs`, `pull.rs` | feeds batches from a pull consumer | own positions rule, never the consumer's |
//! | `envelope.rs`, `batch.rs` | messages become a flat batch | pure; a body that is no envelope is a payload |
//! | `sandbox/` | runs the module within limits | a guest gets `log` and nothing else; answers are checked |
//! | `saga.rs`, `../saga/` | judges a saga's units, folds their effects | pure; the guest sees only what is for it |
//! | `decision.rs` | what the guest's answer means | nothing that no record can hold gets through |
//! | `blame.rs` | finds the event that makes a batch fail | what stands before it is committed |
//! | `parking.rs`, `parking/` | units set aside with all later ones of their key, and taken up again | no event overtakes another of its key |
//! | `documents.rs` | decided documents, shown or not | a read proves itself fresh |
//! | `journal.rs` | one record decides one batch | compare-and-set: two owners are impossible |
//! | `show.rs` | documents go into the bucket | compare-and-set per key, one write in flight per key |
//! | `outbox.rs`, `timers.rs` | effects are published, timers are set | an effect's id is its message id; none is given up |
//! | `waits.rs` | sets timers again whose stream is lost | the same ids; the instances decide |
//! | `alerts.rs` | a stream for what a person should know | a user's stream for it is left alone |
//! | `publication.rs`, `acks.rs` | whole envelopes, acknowledgements | what is written is what `envelope.rs` reads |
//! | `claim.rs`, `positions.rs`, `handler.rs` | take a handler, recover, run, begin again | the last record alone is enough |
//! | `version.rs` | a module made ready, and what it may follow | a bad one is found before it runs |
//! | `keeper.rs` | a handler becomes what its deployment says | what is refused never disturbs what runs |
//! | `generation/`, `rebuild.rs` | a handler's generations, live and shadows | one is live; a shadow's effects are muted |
//! | `promotion.rs`, `promotion/` | one generation takes over from another | one cut; no effect twice, none missing |
//! | `comparison.rs`, `outline.rs` | how two generations differ | what is only a delay is no difference |
//! | `policy.rs` | what this host runs at all | signatures and ceilings are the host's own |
//! | `supervisor.rs`, `registry.rs` | what is deployed, and a keeper for each handler | deployments are plain NATS buckets |
//! | `placement.rs`, `placement/` | which host runs which handler | a view may be wrong: the journal's claim fences |
//! | `survey.rs`, `lag.rs`, `lag/` | how far behind | computed from JetStream, not from what a host says |
//! | `monitor.rs`, `busy.rs`, `census.rs` | what only the host knows: rates, where time goes, counts | no cost per event |
//! | `numbers.rs`, `overview.rs` | all that a person may want to know, in one value | each figure carries its age |
//! | `http.rs`, `http/`, `vitals.rs` | a host's metrics, health and page | reads only, unless a token is shown |
//! | `reader.rs` | reads the overview for all who look at a host | once a second at most |
//! | `alarm.rs`, `alarm/` | when somebody should be told, and when it is over | pure; noise, pauses and rebuilds raise nothing |
//! | `watchman.rs`, `board.rs` | raises and clears alerts for all hosts | compare-and-set: each is told once |
//! | `webhook.rs` | alerts go out by HTTP | signed; never waited for |
//! | `micro.rs` | a NATS service that answers lag, status and stories | reads only |
//! | `traces.rs`, `traces/` | spans for a collector, headers for effects | holds nothing up; an effect's header is decided with it |
//! | `recorded.rs`, `latest.rs`, `buckets.rs` | reads what streams and buckets hold | no consumer is left behind |
//! | `rehearsal.rs` | runs a new module on the past beside the one that runs | pure; nothing is published or written |
//! | `doctor.rs`, `doctor/` | what will hurt later: settings, permissions, leftovers | reads only; each finding names what mends it |
//! | `story.rs` | what became of one instance of a saga | what is not found is said |
//!
//! Around it: `settings.rs` (every limit by name), `names.rs` (every name in NATS), `keys.rs` (escaping), `clock.rs` (time), `legible.rs` (what a terminal may show), `logs.rs` (lines on
//! stderr), `hint.rs` (what to do next), `server.rs` (the
//! embedded nats-server of demo, tests and benchmarks), `cli/` (a file per command), `examples.rs` (builds the
//! example modules), `crash.rs` (where tests end the process).

pub mod acks;
pub mod alarm;
pub mod alerts;
mod batch;
pub mod blame;
pub mod board;
mod buckets;
mod busy;
mod census;
pub mod claim;
pub mod cli;
pub mod clock;
pub mod comparison;
pub mod crash;
#[cfg(test)]
#[path = "../tests/promises/harness/data.rs"]
mod data;
mod decision;
pub mod direct_get;
pub mod doctor;
pub mod documents;
pub mod envelope;
pub mod examples;
pub mod fault;
#[cfg(test)]
mod foreign;
pub mod generation;
pub mod handler;
mod hint;
pub mod http;
pub mod inputs;
pub mod intake;
pub mod journal;
mod keeper;
pub mod keys;
pub mod lag;
mod latest;
pub mod legible;
pub mod logs;
pub mod micro;
mod monitor;
pub mod names;
pub mod numbers;
pub mod outbox;
mod outline;
pub mod overview;
pub mod parking;
pub mod pipeline;
mod placement;
pub mod policy;
mod positions;
pub mod progress;
mod promotion;
pub mod publication;
mod pull;
pub mod reader;
pub mod rebuild;
pub mod recorded;
pub mod registry;
pub mod rehearsal;
pub mod saga;
pub mod sandbox;
pub mod server;
pub mod settings;
pub mod show;
pub mod story;
pub mod subject;
pub mod supervisor;
pub mod survey;
pub mod timers;
pub mod traces;
pub mod version;
pub mod vitals;
mod waits;
pub mod watchman;
pub mod webhook;
