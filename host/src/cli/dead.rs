//! `millstream dead`: which keys are parked, and why. In: a handler, or none for all. Out: a row for each parked key, or one of them as a
//! capsule file. Never: takes anything up, or removes it.

use std::path::PathBuf;

use async_nats::jetstream::{self, Context};
use clap::Args;
use serde::Serialize;

use super::{Fault, connect, output, versions};
use crate::clock;
use crate::decision;
use crate::generation::Generation;
use crate::generation::ledger;
use crate::journal::RECORD_ROOM;
use crate::keys;
use crate::names;
use crate::parking::capsule::Capsule;
use crate::parking::dead::DeadLetters;
use crate::parking::letter::Letter;
use crate::parking::wishes::{self, Wishes};
use crate::parking::{self, CLASSES};
use crate::progress::State;
use crate::registry::Registry;
use crate::settings::Settings;

/// Bytes of one capsule's events, about.
const CAPSULE_BYTES: usize = 64 << 20;

/// List parked keys.
#[derive(Debug, Args)]
pub(super) struct Dead {
    /// The handler; none: all.
    #[arg(value_parser = super::handler_name)]
    handler: Option<String>,
    /// This key alone.
    #[arg(long)]
    key: Option<String>,
    /// This line alone, by the number in the column LETTER.
    #[arg(long, value_name = "NUMBER", conflicts_with = "key")]
    letter: Option<u64>,
    /// Keys whose first event is guilty of that alone.
    #[arg(long, value_parser = CLASSES)]
    class: Option<String>,
    /// Keys that have been parked for so long: 90s, 15m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    older_than: Option<u64>,
    /// Of this generation; none: of the live one.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    /// Write the one that is meant into a capsule file, for `millstream replay`.
    #[arg(long, value_name = "FILE", requires = "handler")]
    save: Option<PathBuf>,
}

/// A parked key, or an event that never got as far as one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(super) handler: String,
    pub(super) generation: u32,
    pub(super) key: Option<String>,
    /// Sequence of its first dead letter.
    pub(super) letter: u64,
    pub(super) class: String,
    pub(super) units: u64,
    pub(super) age_seconds: f64,
    pub(super) attempts: u32,
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) backtrace: String,
    pub(super) digest: String,
    pub(super) stream: String,
    pub(super) sequence: u64,
    pub(super) subject: String,
}

/// `90s`, `15m`, `2h`, `7d`; a bare number is seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|one: char| !one.is_ascii_digit()).unwrap_or(text.len()));
    let each = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        other => return Err(format!("`{other}` is none of s, m, h, d")),
    };
    let number: u64 = number.parse().map_err(|_| "a number and s, m, h or d, such as 15m".to_owned())?;
    Ok(number.saturating_mul(each))
}

/// A handler's parked keys.
pub(crate) struct Parked {
    pub(super) dead: DeadLetters,
    pub(super) wishes: Wishes,
    pub(super) handler: String,
    pub(super) generation: u32,
    pub(super) settings: Settings,
    is_deployed: bool,
    jetstream: Context,
}

impl Parked {
    /// Those of the live generation, or of this one.
    pub(crate) async fn open(jetstream: &Context, handler: &str, generation: Option<u32>) -> Result<Self, Fault> {
        let live = ledger::live(jetstream, handler).await.map_err(Fault::failed)?;
        let number = generation.unwrap_or(live);
        let generation = match number == live {
            true => Generation::live(handler, number),
            false => Generation::shadow(handler, number),
        };
        let deployment = match Registry::peek(jetstream).await? {
            Some(registry) => registry.deployment(handler).await?,
            None => None,
        };
        Ok(Self {
            dead: DeadLetters::of(jetstream, &generation, 1),
            wishes: Wishes::of(jetstream, &generation),
            handler: handler.to_owned(),
            generation: number,
            is_deployed: deployment.is_some(),
            settings: deployment.map(|deployment| deployment.settings).unwrap_or_default(),
            jetstream: jetstream.clone(),
        })
    }

    /// A row for each key, and each event without one, the oldest first. A handler that nobody deployed, and of which nothing is
    /// left, is refused.
    pub(super) async fn rows(&self) -> Result<Vec<Row>, Fault> {
        let (rows, _) = self.some_rows(usize::MAX).await?;
        if rows.is_empty() && !self.is_deployed {
            return Err(versions::not_deployed(&self.handler));
        }
        Ok(rows)
    }

    /// Why the live generation does not run, where it has stopped until somebody does something: nobody hears a wish then.
    pub(super) async fn stopped(&self) -> Result<Option<String>, Fault> {
        if !self.dead.generation.acts() || !self.is_deployed {
            return Ok(None);
        }
        let report = Registry::open(&self.jetstream).await?.status(&self.handler).await?;
        Ok(report.filter(|report| report.state == State::Failing).map(|report| report.reason))
    }

    /// The same of so many keys, by name, and how many there are.
    pub(crate) async fn some_rows(&self, most: usize) -> Result<(Vec<Row>, usize), Fault> {
        let (census, _) = self.dead.census().await.map_err(Fault::failed)?;
        let all = census.len();
        let mut census: Vec<(Option<String>, u64)> = census.into_iter().collect();
        census.sort();
        census.truncate(most);
        let tried = match self.wishes.entry().await {
            Ok(entry) => entry,
            // What is parked can be told without it.
            Err(wishes::Error::Unreadable { .. }) => wishes::Entry::default(),
            Err(error) => return Err(Fault::failed(error)),
        };
        let now = clock::now();
        let mut rows = Vec::new();
        for (key, units) in census {
            let most = if key.is_some() { 1 } else { most };
            let letters = match self.dead.letters(key.as_deref(), units, most, CAPSULE_BYTES).await {
                Ok(letters) => letters,
                // Of one key: the others can be told.
                Err(error @ parking::Error::Foreign { sequence }) => {
                    rows.push(self.unreadable(key, units, sequence, &error));
                    continue;
                }
                Err(error) => return Err(Fault::failed(error)),
            };
            for letter in letters {
                rows.push(Row {
                    handler: self.handler.clone(),
                    generation: self.generation,
                    units: if key.is_some() { units } else { 1 },
                    key: key.clone(),
                    letter: letter.sequence,
                    class: letter.class,
                    age_seconds: (now - letter.parked).max(0) as f64 / 1e9,
                    attempts: tried.failed(key.as_deref(), &letter.stream, letter.event.sequence),
                    reason: letter.reason,
                    backtrace: letter.backtrace,
                    digest: letter.digest,
                    stream: letter.stream,
                    sequence: letter.event.sequence,
                    subject: letter.event.message.subject.to_string(),
                });
            }
        }
        rows.sort_by_key(|row| row.letter);
        Ok((rows, all))
    }

    /// The row of a key whose letters are not all ours.
    fn unreadable(&self, key: Option<String>, units: u64, letter: u64, error: &parking::Error) -> Row {
        let none = String::new;
        Row {
            handler: self.handler.clone(),
            generation: self.generation,
            key,
            letter,
            class: decision::Fault::Unreadable.to_string(),
            units,
            age_seconds: 0.0,
            attempts: 0,
            reason: error.to_string(),
            backtrace: none(),
            digest: none(),
            stream: none(),
            sequence: 0,
            subject: none(),
        }
    }

    pub(super) async fn letters(&self, key: Option<&str>, units: u64, most: usize) -> Result<Vec<Letter>, Fault> {
        self.dead.letters(key, units, most, CAPSULE_BYTES).await.map_err(Fault::failed)
    }

    /// The capsule of a row.
    pub(super) async fn capsule(&self, row: &Row) -> Result<Capsule, Fault> {
        let letters = match &row.key {
            Some(key) => self.letters(Some(key), row.units, usize::MAX).await?,
            None => self.dead.keyless(row.letter).await.map_err(Fault::failed)?.into_iter().collect(),
        };
        let document = match &row.key {
            Some(key) => self.document(key).await?,
            None => None,
        };
        let capsule = Capsule::of(&self.handler, self.generation, &letters, document.as_deref(), &self.settings);
        let mut capsule = capsule.ok_or_else(|| {
            Fault::failed(anyhow::anyhow!("it is parked no more"))
                .hint(format!("see what is with `millstream dead {}`", self.handler))
        })?;
        let largest = self.jetstream.client().server_info().max_payload;
        capsule.record_bytes = Some(largest.saturating_sub(RECORD_ROOM));
        Ok(capsule)
    }

    async fn document(&self, key: &str) -> Result<Option<Vec<u8>>, Fault> {
        let bucket = self.dead.generation.name();
        let store = self.jetstream.get_key_value(&bucket).await.map_err(Fault::failed)?;
        let stored = store.get(keys::escape(key).into_owned()).await.map_err(Fault::failed)?;
        Ok(stored.map(|bytes| bytes.to_vec()))
    }
}

/// Handlers of which something is parked.
async fn handlers(jetstream: &Context) -> Result<Vec<String>, Fault> {
    use futures::TryStreamExt as _;
    let Ok(stream) = jetstream.get_stream(names::DEAD).await else { return Ok(Vec::new()) };
    let mut subjects = stream.info_with_subjects(names::dead_subjects()).await.map_err(Fault::failed)?;
    let mut handlers = std::collections::BTreeSet::new();
    while let Some((subject, _)) = subjects.try_next().await.map_err(Fault::failed)? {
        handlers.extend(subject.split('.').nth(2).map(str::to_owned));
    }
    Ok(handlers.into_iter().collect())
}

impl Dead {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let handlers = match &self.handler {
            Some(handler) => vec![handler.clone()],
            None => handlers(&jetstream).await?,
        };
        let mut rows = Vec::new();
        for handler in &handlers {
            let parked = Parked::open(&jetstream, handler, self.generation).await?;
            let rows_of_it = match self.handler {
                Some(_) => parked.rows().await?,
                None => parked.some_rows(usize::MAX).await?.0,
            };
            let found: Vec<Row> = rows_of_it.into_iter().filter(|row| self.is_meant(row)).collect();
            if let Some(file) = &self.save {
                return save(&parked, &found, file).await;
            }
            rows.extend(found);
        }
        if json {
            return Ok(rows.iter().try_for_each(output::json)?);
        }
        if rows.is_empty() {
            eprintln!("nothing is parked");
            return Ok(());
        }
        Ok(output::line(&table(&rows))?)
    }

    fn is_meant(&self, row: &Row) -> bool {
        self.key.as_ref().is_none_or(|key| row.key.as_ref() == Some(key))
            && self.letter.is_none_or(|letter| row.letter == letter)
            && self.class.as_ref().is_none_or(|class| row.class == *class)
            && self.older_than.is_none_or(|seconds| row.age_seconds >= seconds as f64)
    }
}

async fn save(parked: &Parked, rows: &[Row], file: &std::path::Path) -> Result<(), Fault> {
    let [row] = rows else {
        return Err(Fault::usage(anyhow::anyhow!("{} parked keys are meant; a capsule holds one", rows.len()))
            .hint(format!("name it with --key or --letter; `millstream dead {}` lists them", parked.handler)));
    };
    let capsule = parked.capsule(row).await?;
    let text = serde_json::to_string_pretty(&capsule).map_err(Fault::failed)?;
    std::fs::write(file, text).map_err(|error| {
        Fault::failed(anyhow::Error::new(error).context(format!("{} cannot be written", file.display())))
            .hint("name another file with --save")
    })?;
    eprintln!(
        "wrote {}; see what a module makes of it with `millstream replay {0} --module MODULE.wasm`",
        file.display()
    );
    Ok(())
}

/// The rows as a table.
pub(super) fn table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.handler.clone(),
            row.key.as_deref().map_or_else(|| "(none)".to_owned(), |key| output::cut(key, output::NAME)),
            row.letter.to_string(),
            row.class.clone(),
            output::thousands(row.units),
            output::duration(row.age_seconds),
            row.attempts.to_string(),
            row.digest.chars().take(12).collect(),
            if row.stream.is_empty() { "-".to_owned() } else { format!("{}:{}", row.stream, row.sequence) },
            row.reason.clone(),
        ]
    });
    let header = ["HANDLER", "KEY", "LETTER", "CLASS", "UNITS", "PARKED", "TRIES", "MODULE", "EVENT", "REASON"];
    output::table(&header, &[2, 4, 6], cells.collect())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(["90", "90s", "15m", "2h", "7d"].map(|text| seconds(text).unwrap()), [90, 90, 900, 7200, 604_800]);
        assert!(seconds("m").is_err() && seconds("5y").is_err() && seconds("").is_err());
    }
}
