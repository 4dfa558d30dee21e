//! The example's services as a program. In: `NATS_URL` and the arguments of `USAGE`. Out: answers, until it is stopped. Never: makes
//! a stream.

use std::process::ExitCode;

use order_services::Services;

const USAGE: &str = "\
Warehouse, bank and carrier of the saga order-fulfilment. Answers commands until it is stopped.

Usage: order-services [OPTIONS]

Options:
  --commands STREAM  the stream of commands [default: ORDER_COMMANDS]
  --replies PREFIX   answers go to PREFIX.<event type> [default: orders]
  --limit CENTS      the bank declines more than this [default: 100000]
  --lost CUSTOMER    the carrier never answers for this customer
  --help             print this

The server's address is taken from NATS_URL [default: nats://127.0.0.1:4222].
";

#[tokio::main]
async fn main() -> ExitCode {
    let services = match parse(std::env::args().skip(1)) {
        Ok(Some(services)) => services,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(reason) => {
            eprintln!("error: {reason}\nhint: see `order-services --help`");
            return ExitCode::from(2);
        }
    };
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let ran = async { services.run(async_nats::connect(&url).await?).await };
    match ran.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}\nhint: check NATS_URL ({url}), and that the streams are made");
            ExitCode::FAILURE
        }
    }
}

/// Nothing where help is asked for.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Services>, String> {
    let mut services = Services::default();
    while let Some(name) = arguments.next() {
        if ["--help", "-h"].contains(&name.as_str()) {
            return Ok(None);
        }
        if !["--commands", "--replies", "--limit", "--lost"].contains(&name.as_str()) {
            return Err(format!("`{name}` is no option"));
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match &*name {
            "--commands" => services.commands = value,
            "--replies" => services.replies = value,
            "--lost" => services.lost_customer = value,
            _ => {
                services.limit_cents =
                    value.parse().map_err(|_| format!("--limit is a number of cents, not `{value}`"))?;
            }
        }
    }
    Ok(Some(services))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Services>, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_and_what_is_none_is_named() {
        let services = parsed("--limit 7 --lost C9 --commands C --replies r").expect("options").expect("services");
        let Services { commands, replies, limit_cents, lost_customer } = services;
        assert_eq!((commands.as_str(), replies.as_str(), limit_cents, lost_customer.as_str()), ("C", "r", 7, "C9"));
        for help in ["--help", "-h", "--limit 7 --help"] {
            assert!(parsed(help).expect("help").is_none(), "{help}");
        }
        for (line, reason) in [
            ("--what", "`--what` is no option"),
            ("--limit", "--limit needs a value"),
            ("--limit much", "--limit is a number of cents, not `much`"),
        ] {
            assert_eq!(parsed(line).expect_err(line), reason);
        }
    }
}
