//! Made-up orders, and what the documents must be. Pure: the same index makes the same order, so nothing is kept in memory.
//! The fold shares no code with the handler.

use std::fmt::Write as _;

use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;

/// Bytes of an event's body, where nothing else is asked for.
pub(crate) const BODY_BYTES: usize = 256;

/// How orders spread over customers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spread {
    /// Customer n orders in proportion to 1/n: some keys are hot, as in real streams.
    Zipf,
    /// Every customer orders alike: the fewest changes share a document.
    Uniform,
}

impl Spread {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::Uniform => "uniform",
        }
    }
}

/// What a customer's document must say.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spend {
    pub(crate) orders: u64,
    pub(crate) cents: u64,
}

impl Spend {
    /// The document's bytes.
    pub(crate) fn document(self) -> String {
        format!(r#"{{"orders":{},"cents":{}}}"#, self.orders, self.cents)
    }
}

/// An order.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    /// The customer's number, from 0.
    pub(crate) customer: usize,
    pub(crate) cents: u64,
}

impl Order {
    /// `{"customer":"C7","cents":120,"note":"…"}`, padded to so many bytes.
    pub(crate) fn body(self, bytes: usize) -> Bytes {
        let mut body = String::with_capacity(bytes);
        let _ = write!(body, r#"{{"customer":"{}","cents":{},"note":""#, key(self.customer), self.cents);
        body.extend(std::iter::repeat_n('x', bytes.saturating_sub(body.len() + 2)));
        body.push_str("\"}");
        body.into()
    }
}

/// The key of a customer's document.
pub(crate) fn key(customer: usize) -> String {
    format!("C{customer}")
}

/// Orders of so many customers.
pub(crate) struct Shop {
    pub(crate) customers: usize,
    /// Share of all orders that go to customers up to this one.
    shares: Vec<f64>,
}

impl Shop {
    pub(crate) fn new(spread: Spread, customers: usize) -> Self {
        let weight = |customer: usize| match spread {
            Spread::Zipf => 1.0 / (customer + 1) as f64,
            Spread::Uniform => 1.0,
        };
        let total: f64 = (0..customers).map(weight).sum();
        let mut sum = 0.0;
        let shares = (0..customers).map(|customer| {
            sum += weight(customer) / total;
            sum
        });
        Self { customers, shares: shares.collect() }
    }

    /// The order of that number.
    pub(crate) fn order(&self, index: u64) -> Order {
        let dice = scatter(index);
        let at = (dice >> 11) as f64 / (1_u64 << 53) as f64;
        let customer = self.shares.partition_point(|share| *share <= at).min(self.customers - 1);
        Order { customer, cents: 100 + dice % 9900 }
    }

    /// What so many orders make of each customer.
    pub(crate) fn fold(&self, orders: u64) -> Vec<Spend> {
        self.fold_of(0..orders)
    }

    /// What the orders of these numbers make of each customer.
    pub(crate) fn fold_of(&self, numbers: impl Iterator<Item = u64>) -> Vec<Spend> {
        let mut spend = vec![Spend::default(); self.customers];
        for order in numbers.map(|index| self.order(index)) {
            if let Some(spend) = spend.get_mut(order.customer) {
                spend.orders += 1;
                spend.cents += order.cents;
            }
        }
        spend
    }
}

/// `SplitMix64`: neighbouring numbers become unrelated ones.
fn scatter(index: u64) -> u64 {
    let mut mixed = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
