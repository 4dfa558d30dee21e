//! What every test stands on: a server of its own, hosts as real processes, modules built once, conditions with deadlines, and
//! folds that share no code with the handlers. A room for each; here are their names.

pub mod browser;
pub mod cluster;
mod collector;
pub mod data;
mod modules;
mod orders;
mod points;
mod process;
mod python;
mod records;
mod waiting;
pub mod web;
mod world;

pub use collector::{Collector, attribute};
pub use modules::module;
pub use orders::{Dice, Documents, Event, chains, orders, outcomes, spend, spend_v2};
pub(crate) use points::at_each_point;
pub use process::{Host, MILLSTREAM, cli, refused};
pub use python::prometheus;
pub use records::{claims_in_turn, records};
pub use waiting::{PATIENCE, pause, until};
pub use world::{World, documents_of, json_lines};
