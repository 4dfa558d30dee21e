//! Modules, built once per test run.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use millstream::examples;

/// All that any test deploys.
const HANDLERS: [&str; 18] = [
    "customer-spend",
    "customer-spend-v2",
    "customer-spend-next",
    "order-receipt",
    "fine-status",
    "page-edits",
    "channel-stats",
    "order-chain",
    "order-fulfilment",
    "fine-penalty",
    "fine-collection",
    "create-order",
    "transfer-money",
    "reminder",
    "scripted",
    "scripted-next",
    "fragile",
    "fragile-mended",
];

/// The `.wasm` of an example.
pub fn module(example: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    BUILT.get_or_init(|| examples::build(root, &HANDLERS).expect("the examples build"));
    examples::module(root, example)
}
