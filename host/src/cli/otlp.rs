//! Where `millstream run` sends traces. In: flags and the environment's usual variables. Out: the exporting, or none. Never: begins
//! to export to what is no address.

use clap::Args;

use super::Fault;
use crate::traces::{Exporting, Options};

/// Traces for an OpenTelemetry collector.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub(super) struct Otlp {
    /// Send traces to this collector, by OTLP over HTTP, such as http://localhost:4318.
    #[arg(long = "otlp", value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    endpoint: Option<String>,
    /// The part of traces that are kept, from 0 to 1, where the publisher has not decided about it.
    #[arg(long = "otlp-sample", value_name = "PART", env = "MILLSTREAM_OTLP_SAMPLE", default_value_t = 1.0)]
    #[arg(value_parser = part)]
    sample: f64,
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

impl Otlp {
    /// Begins to export, if that is wanted.
    pub(super) fn start(self, host: &str) -> Result<Option<Exporting>, Fault> {
        let Some(endpoint) = self.endpoint.filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
        let options = Options { endpoint, ratio: self.sample, host: host.to_owned() };
        let exporting = Exporting::start(&options).map_err(|error| {
            Fault::usage(error).hint(
                "name the HTTP port of a collector with --otlp http://HOST:4318, or unset OTEL_EXPORTER_OTLP_ENDPOINT",
            )
        })?;
        Ok(Some(exporting))
    }
}
