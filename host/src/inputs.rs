//! Which streams a handler reads. In: subject filters, and stream names where the deployment gives them. Out: one input per
//! stream with its filters. Never: creates or alters a user's stream.

use std::collections::HashSet;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Info, RetentionPolicy};
use async_nats::jetstream::{Context, ErrorCode};
use futures::TryStreamExt as _;

use crate::names;
use crate::subject;
use crate::timers;

/// One stream that a handler reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The stream's name.
    pub stream: String,
    /// Subject filters on it.
    pub filters: Vec<String>,
    /// When the stream was created, nanoseconds since 1970.
    pub created: i64,
    /// First sequence it still has.
    pub first: u64,
    /// Last sequence it gave out.
    pub last: u64,
    /// Whether it answers direct gets.
    pub direct: bool,
}

/// Why a handler has no sound input. All but `Unreachable` are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter that is no subject.
    #[error("`{0}` is not a valid subject filter")]
    BadFilter(String),
    /// Neither module nor deployment name a subject.
    #[error("the handler names no subjects")]
    NoSubjects,
    /// A named stream is missing.
    #[error("there is no stream {0}")]
    NoStream(String),
    /// No stream stores the subject.
    #[error("no stream holds subject `{0}`")]
    NoHolder(String),
    /// Several streams store it and the deployment does not say which are meant.
    #[error("subject `{filter}` is held by several streams: {}", streams.join(", "))]
    Ambiguous {
        /// The filter.
        filter: String,
        /// The streams.
        streams: Vec<String>,
    },
    /// A named stream holds none of the subjects.
    #[error("stream {stream} holds none of the handler's subjects ({})", filters.join(", "))]
    Unrelated {
        /// The stream.
        stream: String,
        /// The handler's filters.
        filters: Vec<String>,
    },
    /// Acked messages vanish, so nothing could ever be rebuilt.
    #[error("stream {0} deletes messages when they are acknowledged ({1} retention): it cannot be replayed")]
    NotReplayable(String, &'static str),
    /// Two filters deliver the same message.
    #[error("filters `{0}` and `{1}` overlap")]
    Overlap(String, String),
    /// No answer.
    #[error("streams could not be listed: {0}")]
    Unreachable(String),
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::BadFilter(_) | Self::NoSubjects => "give subjects with --set subjects=orders.>".to_owned(),
            Self::NoStream(_) => "list the streams with `nats stream ls`".to_owned(),
            Self::NoHolder(filter) => {
                format!("make one with `nats stream add EVENTS --subjects '{filter}' --defaults`")
            }
            Self::Ambiguous { streams, .. } => {
                format!("name the ones you mean with --stream {}", streams.join(" --stream "))
            }
            Self::Unrelated { stream, .. } => format!("see its subjects with `nats stream info {stream}`"),
            Self::NotReplayable(stream, _) => {
                format!(
                    "source it into a stream with limits retention: `nats stream add {stream}_LOG --source {stream} --defaults`"
                )
            }
            Self::Overlap(..) => "drop the narrower one with --set subjects=...".to_owned(),
            Self::Unreachable(_) => "try `nats account info` against the same server".to_owned(),
        }
    }
}

/// Finds the inputs.
///
/// # Errors
/// The first thing that is wrong, by name.
pub async fn resolve(jetstream: &Context, filters: &[String], streams: &[String]) -> Result<Vec<Input>, Error> {
    check_filters(filters)?;
    choose(&list(jetstream).await?, filters, streams)
}

/// The same among streams that were listed before.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn among(known: &[Info], filters: &[String], streams: &[String]) -> Result<Vec<Input>, Error> {
    check_filters(filters)?;
    choose(known, filters, streams)
}

/// All streams by name.
///
/// # Errors
/// When they cannot be listed.
pub(crate) async fn list(jetstream: &Context) -> Result<Vec<Info>, Error> {
    let mut known: Vec<Info> =
        jetstream.streams().try_collect().await.map_err(|error| Error::Unreachable(error.to_string()))?;
    // The server lists them in no order; people read one that stays.
    known.sort_by(|one, other| one.config.name.cmp(&other.config.name));
    Ok(known)
}

/// Those of these subjects, wildcards allowed, that no user's stream takes: a sealed one holds what it has and takes nothing.
/// What is only taken in part is told in the log, for it may be all that is ever sent.
///
/// # Errors
/// When the streams cannot be listed.
pub async fn without_holder(jetstream: &Context, subjects: &[String]) -> Result<Vec<String>, Error> {
    let known = list(jetstream).await?;
    let mut without = Vec::new();
    for subject in subjects {
        let (sealed, takers): (Vec<&Info>, Vec<&Info>) =
            known.iter().filter(|info| holds(info, subject)).partition(|info| info.config.sealed);
        for info in sealed {
            tracing::warn!(subject, "stream {} is sealed: it takes no messages any more", info.config.name);
        }
        if takers.is_empty() {
            without.push(subject.clone());
            continue;
        }
        let taken: Vec<&str> = takers.iter().flat_map(|info| &info.config.subjects).map(String::as_str).collect();
        if !taken.iter().any(|taken| subject::covers(taken, subject)) {
            let taken: Vec<&str> = taken.into_iter().filter(|taken| subject::overlaps(taken, subject)).collect();
            tracing::warn!(
                subject,
                "streams take only {} of it; a message to any other subject waits until a stream takes it",
                taken.join(", ")
            );
        }
    }
    Ok(without)
}

/// A user's stream that holds some subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The stream's name.
    pub stream: String,
    /// Those of the subjects, wildcards allowed, that it may hold, none within another.
    pub filters: Vec<String>,
    /// First sequence it still has.
    pub first: u64,
    /// Last sequence it gave out.
    pub last: u64,
    /// When the first message it still has was stored, nanoseconds since 1970; none if it never dropped one.
    pub first_time: Option<i64>,
    /// Whether it answers direct gets.
    pub direct: bool,
    /// Whether it deletes what was consumed.
    pub consumes: bool,
}

/// The users' streams that hold these subjects, wildcards allowed; those of `streams` also where they are fed by others. Of our
/// own, the one of alerts, where alerts are asked for.
///
/// # Errors
/// When the streams cannot be listed.
pub async fn holders(jetstream: &Context, subjects: &[String], streams: &[String]) -> Result<Vec<Holder>, Error> {
    let known = list(jetstream).await?;
    let alerts = |info: &Info, subject: &str| {
        info.config.name == names::EVENTS && subject::covers(&names::event_subjects(), subject)
    };
    let holder = |info: &Info| {
        let fed = is_fed(info) && streams.contains(&info.config.name);
        let mut filters: Vec<String> = Vec::new();
        for subject in subjects.iter().filter(|subject| fed || holds(info, subject) || alerts(info, subject)) {
            if !filters.iter().any(|filter| subject::covers(filter, subject)) {
                filters.retain(|filter| !subject::covers(subject, filter));
                filters.push(subject.clone());
            }
        }
        let first_time = i64::try_from(info.state.first_timestamp.unix_timestamp_nanos()).ok();
        (!filters.is_empty()).then(|| Holder {
            stream: info.config.name.clone(),
            filters,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            first_time: first_time.filter(|_| info.state.first_sequence > 1),
            direct: info.config.allow_direct,
            consumes: info.config.retention != RetentionPolicy::Limits,
        })
    };
    Ok(known.iter().filter_map(holder).collect())
}

/// The input of a saga's own timers, whose stream is made when it is missing.
///
/// # Errors
/// When the stream is not ours, or the server refuses.
pub async fn timers(jetstream: &Context, handler: &str, replicas: usize) -> Result<Input, timers::Error> {
    let stream = timers::open(jetstream, replicas).await?;
    let info = stream.get_info().await.map_err(|error| timers::Error::Refused(error.to_string()))?;
    Ok(of_timers(handler, &info))
}

/// The same to look at; nothing where the stream is missing.
///
/// # Errors
/// When the server does not answer.
pub async fn timers_if_there(jetstream: &Context, handler: &str) -> Result<Option<Input>, timers::Error> {
    match jetstream.get_stream(names::TIMERS).await {
        Ok(stream) => Ok(Some(of_timers(handler, stream.cached_info()))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(timers::Error::Refused(error.to_string())),
    }
}

/// The same among streams that were listed before.
pub(crate) fn timers_among(known: &[Info], handler: &str) -> Option<Input> {
    known.iter().find(|info| info.config.name == names::TIMERS).map(|info| of_timers(handler, info))
}

fn of_timers(handler: &str, info: &Info) -> Input {
    Input {
        stream: names::TIMERS.to_owned(),
        filters: vec![names::timer_due_subject(handler)],
        created: i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default(),
        // What is missing at the beginning was decided, by this handler or others.
        first: 0,
        last: info.state.last_sequence,
        direct: info.config.allow_direct,
    }
}

pub(crate) fn is_missing(error: &GetStreamError) -> bool {
    let GetStreamErrorKind::JetStream(error) = error.kind() else { return false };
    error.error_code() == ErrorCode::STREAM_NOT_FOUND
}

/// Whether a stream is there.
///
/// # Errors
/// When the server refuses or does not answer.
pub(crate) async fn is_there(jetstream: &Context, stream: &str) -> Result<bool, GetStreamError> {
    match jetstream.get_stream(stream).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first sequence that a stream still has, from its leader.
///
/// # Errors
/// When the server does not answer.
pub async fn first_sequence(jetstream: &Context, stream: &str) -> Result<u64, Error> {
    let unreachable = |reason: String| Error::Unreachable(reason);
    let stream = jetstream.get_stream_no_info(stream).await.map_err(|error| unreachable(error.to_string()))?;
    let info = stream.get_info().await.map_err(|error| unreachable(error.to_string()))?;
    Ok(info.state.first_sequence)
}

fn check_filters(filters: &[String]) -> Result<(), Error> {
    if filters.is_empty() {
        return Err(Error::NoSubjects);
    }
    for (index, filter) in filters.iter().enumerate() {
        if !subject::is_valid_filter(filter) {
            return Err(Error::BadFilter(filter.clone()));
        }
        if let Some(other) = filters.iter().skip(index + 1).find(|other| subject::overlaps(filter, other)) {
            return Err(Error::Overlap(filter.clone(), other.clone()));
        }
    }
    Ok(())
}

fn choose(known: &[Info], filters: &[String], streams: &[String]) -> Result<Vec<Input>, Error> {
    let mut inputs: Vec<Input> = Vec::new();
    if streams.is_empty() {
        for filter in filters {
            let holders: Vec<&Info> = known.iter().filter(|info| holds(info, filter)).collect();
            match holders.as_slice() {
                [] => return Err(Error::NoHolder(filter.clone())),
                [one] => add(&mut inputs, one, filter)?,
                several => {
                    let streams = several.iter().map(|info| info.config.name.clone()).collect();
                    return Err(Error::Ambiguous { filter: filter.clone(), streams });
                }
            }
        }
    } else {
        let mut named = HashSet::new();
        // One that is named twice is read once.
        for name in streams.iter().filter(|name| named.insert(*name)) {
            let info =
                known.iter().find(|info| info.config.name == *name).ok_or_else(|| Error::NoStream(name.clone()))?;
            let held: Vec<&String> = filters.iter().filter(|filter| holds(info, filter) || is_fed(info)).collect();
            if held.is_empty() {
                return Err(Error::Unrelated { stream: name.clone(), filters: filters.to_vec() });
            }
            for filter in held {
                add(&mut inputs, info, filter)?;
            }
        }
    }
    Ok(inputs)
}

/// Streams of other streams' messages have no subjects of their own to compare.
fn is_fed(info: &Info) -> bool {
    info.config.mirror.is_some() || info.config.sources.as_ref().is_some_and(|sources| !sources.is_empty())
}

fn holds(info: &Info, filter: &str) -> bool {
    let internal = |name: &str| name.starts_with("MILLSTREAM_") || name.starts_with("KV_") || name.starts_with("OBJ_");
    let config = &info.config;
    let stored = config.subject_transform.as_ref().map(|transform| subject::made_by(&transform.destination));
    !internal(&config.name) && config.subjects.iter().chain(&stored).any(|subjects| subject::overlaps(subjects, filter))
}

fn add(inputs: &mut Vec<Input>, info: &Info, filter: &str) -> Result<(), Error> {
    let name = &info.config.name;
    match info.config.retention {
        RetentionPolicy::Limits => {}
        RetentionPolicy::Interest => return Err(Error::NotReplayable(name.clone(), "interest")),
        RetentionPolicy::WorkQueue => return Err(Error::NotReplayable(name.clone(), "work-queue")),
    }
    match inputs.iter_mut().find(|input| input.stream == *name) {
        Some(input) => input.filters.push(filter.to_owned()),
        None => inputs.push(Input {
            stream: name.clone(),
            filters: vec![filter.to_owned()],
            created: i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default(),
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            direct: info.config.allow_direct,
        }),
    }
    Ok(())
}
