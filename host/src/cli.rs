//! The command line: arguments, one file per command, and how faults are told. In: what was typed. Out: the exit code;
//! data on stdout, all else on stderr. Never: does a command's work itself.

mod abandon;
mod adopt;
mod alerts;
pub mod connect;
pub(crate) mod dead;
mod demo;
mod deploy;
mod dev;
mod diff;
mod doctor;
pub(crate) mod explain;
mod generations;
mod get;
mod hosts;
pub(crate) mod instances;
mod lag;
mod list;
mod new;
mod otlp;
mod output;
pub(crate) mod pause;
pub mod progress;
mod promote;
pub mod publish;
mod reasons;
mod rebuild;
mod redrive;
mod rehearse;
mod remove;
mod replay;
mod resume_compensation;
pub(crate) mod rollback;
mod run;
mod running;
pub(crate) mod sagas;
mod secret;
mod send;
mod shadow;
mod span;
mod top;
mod underway;
mod verdicts;
pub(crate) mod versions;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::logs;
use crate::names;

use crate::fault;
pub use crate::fault::Fault;

/// Projections and sagas as sandboxed WASM on NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(flatten)]
    connection: connect::Connection,
    /// Print data as JSON, one value per line.
    #[arg(long, global = true)]
    json: bool,
    /// How the log on stderr is written.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "MILLSTREAM_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: logs::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole thing on an embedded server: events in, documents out, lag falling.
    Demo(demo::Demo),
    /// Build, test, deploy and run handler crates while they are edited.
    Dev(dev::Dev),
    /// Run the deployed handlers on this host.
    Run(run::Run),
    /// Check a module and deploy it.
    Deploy(deploy::Deploy),
    /// Run a new module beside the deployed one on recorded events.
    Shadow(shadow::Shadow),
    /// List the deployed handlers.
    List(list::List),
    /// Go back to an earlier version.
    Rollback(rollback::Rollback),
    /// Stop a handler and leave it stopped.
    Pause(pause::Pause),
    /// Let a paused handler run again.
    Resume(pause::Resume),
    /// Take a handler off its hosts.
    Remove(remove::Remove),
    /// Read documents.
    Get(get::Get),
    /// Show how far behind the handlers are.
    Lag(lag::LagCommand),
    /// List parked keys.
    Dead(dead::Dead),
    /// Take up parked keys again.
    Redrive(redrive::Redrive),
    /// Give up parked events.
    Discard(redrive::Discard),
    /// Run a module on a parked key that was saved.
    Replay(replay::Replay),
    /// Check server, streams and permissions before it matters.
    Doctor(doctor::Doctor),
    /// Watch the handlers on a full screen.
    Top(top::Top),
    /// List the alerts that are raised.
    Alerts(alerts::Alerts),
    /// List the instances of a saga.
    Sagas(sagas::Sagas),
    /// Tell the story of one instance of a saga.
    Explain(explain::Explain),
    /// Take up a compensation that failed.
    ResumeCompensation(resume_compensation::ResumeCompensation),
    /// Send one command, and wait for its answer.
    Send(send::Send),
    /// Build a handler's documents anew, beside the live ones.
    Rebuild(rebuild::Rebuild),
    /// Compare a rebuilt generation with the live one.
    Diff(diff::Diff),
    /// Have a generation take the place of the live one, at one exact event.
    Promote(promote::Promote),
    /// Remove a generation that is not live.
    Abandon(abandon::Abandon),
    /// Go on with streams or documents that were restored from a backup.
    Adopt(adopt::Adopt),
    /// Publish a file of events.
    Publish(publish::Arguments),
    /// Make a new handler crate.
    New(new::New),
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// What to do about arguments that cannot be read.
#[must_use]
pub fn hint_for_arguments(given: impl Iterator<Item = String>) -> String {
    let known = Arguments::command();
    let named = given.skip(1).find(|argument| known.find_subcommand(argument).is_some());
    match named {
        Some(command) => format!("`millstream {command} --help` says what it takes"),
        None => "`millstream --help` lists the commands".to_owned(),
    }
}

/// Does what was asked.
///
/// # Errors
/// What failed, with exit code and hint.
pub fn run(arguments: Arguments) -> Result<(), Fault> {
    let Arguments { connection, json, log_format, command } = arguments;
    if let Command::Completion { shell } = command {
        clap_complete::generate(shell, &mut Arguments::command(), "millstream", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::New(new) = command {
        return new.run();
    }
    if let Command::Replay(replay) = command {
        return replay.run(json);
    }
    logs::start(log_format, matches!(command, Command::Run(_) | Command::Dev(_)));
    let runtime = tokio::runtime::Runtime::new().map_err(Fault::failed)?;
    let done = runtime.block_on(command.run(&connection, json));
    match (done, connection.refusals.told()) {
        (Err(fault), told) => Err(fault.refused(told).as_logged(log_format)),
        (Ok(()), Some(told)) => {
            match log_format {
                logs::Format::Json => {
                    tracing::warn!(hint = fault::PERMIT, "this may not be all: the server said: {told}")
                }
                logs::Format::Text => {
                    eprintln!("warning: this may not be all, for the server said: {told}\nhint: {}", fault::PERMIT)
                }
            }
            Ok(())
        }
        (Ok(()), None) => Ok(()),
    }
}

impl Command {
    async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        match self {
            Self::Demo(demo) => demo.run().await,
            Self::Dev(dev) => dev.run(connection.clone()).await,
            Self::Run(run) => run.run(connection).await,
            Self::Deploy(deploy) => deploy.run(connection, json).await,
            Self::Shadow(shadow) => shadow.run(connection, json).await,
            Self::List(list) => list.run(connection, json).await,
            Self::Rollback(rollback) => rollback.run(connection, json).await,
            Self::Pause(pause) => pause.run(connection, json).await,
            Self::Resume(resume) => resume.run(connection, json).await,
            Self::Remove(remove) => remove.run(connection, json).await,
            Self::Get(get) => get.run(connection, json).await,
            Self::Lag(lag) => lag.run(connection, json).await,
            Self::Dead(dead) => dead.run(connection, json).await,
            Self::Redrive(redrive) => redrive.run(connection, json).await,
            Self::Discard(discard) => discard.run(connection, json).await,
            Self::Doctor(doctor) => doctor.run(connection, json).await,
            Self::Top(top) => top.run(connection).await,
            Self::Alerts(alerts) => alerts.run(connection, json).await,
            Self::Sagas(sagas) => sagas.run(connection, json).await,
            Self::Explain(explain) => explain.run(connection, json).await,
            Self::ResumeCompensation(resume) => resume.run(connection, json).await,
            Self::Rebuild(rebuild) => rebuild.run(connection, json).await,
            Self::Diff(diff) => diff.run(connection, json).await,
            Self::Promote(promote) => promote.run(connection, json).await,
            Self::Abandon(abandon) => abandon.run(connection).await,
            Self::Adopt(adopt) => adopt.run(connection, json).await,
            Self::Send(send) => send.run(connection, json).await,
            Self::Publish(arguments) => {
                open(connection).await?;
                publish::run(connection, &arguments, json).await.map_err(|error| {
                    let (code, hint) = (error.exit_code(), error.hint());
                    Fault::new(error, code, hint)
                })
            }
            Self::New(_) | Self::Replay(_) | Self::Completion { .. } => Ok(()),
        }
    }
}

/// A handler's name, as an argument.
fn handler_name(text: &str) -> Result<String, String> {
    names::handler_name_defect(text).map_or_else(|| Ok(text.to_owned()), Err)
}

/// Connects, and checks that the server can do what we rely on.
async fn open(connection: &connect::Connection) -> Result<async_nats::Client, Fault> {
    let client = connected(connection).await?;
    connect::check_server(&client).await.map_err(unconnected)?;
    Ok(client)
}

/// Connects to whatever server is there.
async fn connected(connection: &connect::Connection) -> Result<async_nats::Client, Fault> {
    connection.connect().await.map_err(unconnected)
}

fn unconnected(error: connect::Error) -> Fault {
    use connect::Error::{Denied, NoJetStream, TooOld};
    let hint = error.hint();
    let mine = error.is_usage() || matches!(error, TooOld { .. } | NoJetStream { .. } | Denied { .. });
    let fault = if mine { Fault::usage(error) } else { Fault::failed(error) };
    match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}
