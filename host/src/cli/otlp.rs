//! Where `millstream run` sends traces. In: flags and the environment's usual variables. Out: the exporting, or none. Never: begins
//! to export to what is no address.

use clap::Args;

use super::Fault;
use crate::traces::{Exporting, Options};

/// Traces for an OpenTelemetry collector.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub(super) struct Otlp {
    /// Send traces to this collector, by OTLP over HTTP, such as http://localhost:4318; `/v1/traces` is added.
    /// [env: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, taken as it is; else OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long = "otlp", value_name = "URL")]
    collector: Option<String>,
    /// The part of traces that are kept, from 0 to 1, where the publisher has not decided about it.
    #[arg(long = "otlp-sample", value_name = "PART", env = "MILLSTREAM_OTLP_SAMPLE", default_value_t = 1.0)]
    #[arg(value_parser = part)]
    sample: f64,
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
}

/// Where traces go: what the command line says counts more than the environment, and the word about traces more than that about
/// all signals.
fn endpoint(collector: Option<String>, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let given = |text: &String| !text.is_empty();
    let of_collector = |url: String| format!("{}/v1/traces", url.trim_end_matches('/'));
    let of_traces = || variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").filter(given);
    let of_all = || variable("OTEL_EXPORTER_OTLP_ENDPOINT").filter(given).map(of_collector);
    collector.filter(given).map(of_collector).or_else(of_traces).or_else(of_all)
}

impl Otlp {
    /// Begins to export, if that is wanted.
    pub(super) fn start(self, host: &str) -> Result<Option<Exporting>, Fault> {
        let Some(endpoint) = endpoint(self.collector, |name| std::env::var(name).ok()) else { return Ok(None) };
        let options = Options { endpoint, ratio: self.sample, host: host.to_owned() };
        let exporting = Exporting::start(&options).map_err(|error| {
            Fault::usage(error).hint(
                "name the HTTP port of a collector with --otlp http://HOST:4318, or unset OTEL_EXPORTER_OTLP_ENDPOINT \
                 and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            )
        })?;
        Ok(Some(exporting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_about_traces_is_taken_as_it_is_and_the_one_about_all_gets_a_path() {
        let of = |flag: Option<&str>, traces: &str, all: &str| {
            let variable = |name: &str| match name {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(traces.to_owned()),
                "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(all.to_owned()),
                _ => None,
            };
            endpoint(flag.map(str::to_owned), variable)
        };
        for (flag, traces, all, wanted) in [
            (None, "", "", None),
            (None, "", "http://a:4318", Some("http://a:4318/v1/traces")),
            (None, "", "http://a:4318/", Some("http://a:4318/v1/traces")),
            (None, "", "http://a/tenant", Some("http://a/tenant/v1/traces")),
            (None, "http://b/own", "http://a:4318", Some("http://b/own")),
            (None, "http://b/", "", Some("http://b/")),
            (Some("http://c:1"), "http://b/own", "http://a:4318", Some("http://c:1/v1/traces")),
            (Some(""), "", "http://a:4318", Some("http://a:4318/v1/traces")),
        ] {
            assert_eq!(of(flag, traces, all).as_deref(), wanted, "{flag:?} {traces:?} {all:?}");
        }
    }
}
