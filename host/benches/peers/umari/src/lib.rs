//! What each customer has spent, as a projector of Umari: the same events and the same sums as the handler `customer-spend`.
//!
//! Written as Umari's own documentation does it: a table, a statement prepared once, one call for each event.

use serde::{Deserialize, Serialize};
use umari::prelude::*;

export_projector!(Spend);

#[derive(DomainIds, Event, Deserialize, Serialize)]
#[event_type("OrderPlaced")]
struct OrderPlaced {
    #[domain_id]
    customer: String,
    cents: i64,
}

#[derive(EventSet)]
enum Query {
    OrderPlaced(OrderPlaced),
}

struct Spend {
    add: Statement,
}

impl Projector for Spend {
    type Query = Query;

    fn init() -> Result<Self, SqliteError> {
        execute(
            "CREATE TABLE IF NOT EXISTS spend (customer TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL)",
            (),
        )?;
        let add = prepare(
            "INSERT INTO spend (customer, orders, cents) VALUES (?1, 1, ?2)
             ON CONFLICT (customer) DO UPDATE SET orders = orders + 1, cents = cents + excluded.cents",
        );
        Ok(Self { add })
    }

    fn handle(&mut self, event: StoredEvent<Query>) -> Result<(), SqliteError> {
        let Query::OrderPlaced(order) = event.data;
        self.add.execute((order.customer, order.cents))?;
        Ok(())
    }
}
