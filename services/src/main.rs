//! The example's services as a program. In: `NATS_URL` and `order-services [--commands STREAM] [--replies PREFIX]
//! [--limit CENTS] [--lost CUSTOMER]`. Out: answers, until it is stopped. Never: makes a stream.

use anyhow::{Context as _, bail};
use order_services::Services;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut services = Services::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match &*name {
            "--commands" => services.commands = value,
            "--replies" => services.replies = value,
            "--limit" => services.limit_cents = value.parse().context("--limit is a number of cents")?,
            "--lost" => services.lost_customer = value,
            _ => bail!("{name}: there are --commands, --replies, --limit and --lost"),
        }
    }
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    services.run(async_nats::connect(url).await?).await
}
