//! The demo's sagas. In: the services' program, to answer their commands as a process of its own. Out: three orders,
//! and whether each ended as it must. Never: answers a command itself.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::super::explain;
use super::super::instances::Saga;
use super::super::output;
use super::Fault;
use crate::story::{Kind, Story, drawing};

/// The saga shown.
pub(super) const HANDLER: &str = "order-fulfilment";

/// Its subjects here: a stream of its own, apart from the hundred thousand orders that the projections count.
pub(super) const SUBJECTS: &str = "fulfilment.>";

/// The carrier has lost this customer's address, and says nothing.
const LOST: &str = "C13";

/// How long the three may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that `explain` looks at.
const SCAN: usize = 100_000;

/// An order, and what must become of it.
struct Order {
    key: &'static str,
    tale: &'static str,
    payload: &'static str,
    status: &'static str,
    commands: &'static [&'static str],
}

const ORDERS: [Order; 3] = [
    Order {
        key: "O1",
        tale: "everything goes well",
        payload: r#"{"order":"O1","customer":"C1","cents":4900}"#,
        status: "completed",
        commands: &["ReserveInventory", "ChargePayment", "BookShipping", "SendConfirmation"],
    },
    Order {
        key: "O2",
        tale: "the bank declines: what was reserved is released",
        payload: r#"{"order":"O2","customer":"C2","cents":250000}"#,
        status: "compensated",
        commands: &["ReserveInventory", "ChargePayment", "ReleaseInventory"],
    },
    Order {
        key: "O3",
        tale: "an express order, and the carrier never answers: asked twice, then all is taken back, last step first",
        payload: r#"{"order":"O3","customer":"C13","cents":1200,"express":true}"#,
        status: "compensated",
        commands: &[
            "ReserveInventory",
            "ChargePayment",
            "BookShipping",
            "BookShipping",
            "CancelShipping",
            "RefundPayment",
            "ReleaseInventory",
        ],
    },
];

/// Makes the streams that a user would make.
pub(super) async fn streams(jetstream: &jetstream::Context) -> anyhow::Result<()> {
    for (name, subject) in [("FULFILMENT", SUBJECTS), ("ORDER_COMMANDS", "order-commands.*")] {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            allow_direct: true,
            ..Default::default()
        };
        jetstream.get_or_create_stream(config).await?;
    }
    Ok(())
}

/// Starts the services. They end with this value.
pub(super) fn services(program: &Path, url: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(program);
    command.args(["--commands", "ORDER_COMMANDS", "--replies", "fulfilment", "--lost", LOST]);
    command.env("NATS_URL", url).kill_on_drop(true);
    command.spawn().with_context(|| format!("{} cannot be started", program.display()))
}

/// Places the orders, waits for what becomes of them, and tells it. Answers whether all of it is as it must be.
pub(super) async fn tell(jetstream: &jetstream::Context) -> Result<bool, Fault> {
    for order in &ORDERS {
        place(jetstream, order).await?;
    }
    super::say("orders", &format!("{} placed; each is an instance of the saga {HANDLER}", ORDERS.len()));
    let saga = Saga::of(jetstream.clone(), HANDLER).await?;
    let mut right = true;
    for order in &ORDERS {
        let story = ended(&saga, order).await?;
        let found = commands(&story);
        let as_told = story.status.to_string() == order.status && found == order.commands && story.missing.is_empty();
        let verdict = if as_told { "as it must" } else { "NOT as it must" };
        super::say("saga", &format!("{} {}, {verdict}: {}", order.key, story.status, order.tale));
        output::line(&format!("\n{}", drawing::draw(&story, output::paints())))?;
        if !as_told {
            super::say("saga", &format!("{} must be {} after {:?}", order.key, order.status, order.commands));
        }
        right &= as_told;
    }
    Ok(right)
}

async fn place(jetstream: &jetstream::Context, order: &Order) -> anyhow::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("placed-{}", order.key));
    jetstream.publish_with_headers("fulfilment.OrderPlaced", headers, order.payload.into()).await?.await?;
    Ok(())
}

/// The story as soon as the instance is over, or when it takes too long.
async fn ended(saga: &Saga, order: &Order) -> Result<Story, Fault> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is_over = Instant::now() > deadline
            || saga.instance(order.key).await?.is_some_and(|found| found.instance.status.has_ended());
        if is_over {
            let story = explain::story(saga, order.key, SCAN).await?;
            return story.ok_or_else(|| Fault::failed(anyhow::anyhow!("order {} began no instance", order.key)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What was sent, in order.
fn commands(story: &Story) -> Vec<&str> {
    let effects = story.events.iter().flat_map(|event| &event.effects);
    effects.filter(|deed| matches!(deed.kind, Kind::Command | Kind::Undo)).map(|deed| &*deed.name).collect()
}
