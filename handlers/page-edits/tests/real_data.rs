//! 39,244 real Wikipedia edits give the answer that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use page_edits::PageEdits;
use real_data::{answer_and_documents, sha256_of_rows};

#[test]
fn the_state_of_every_page_is_as_computed_elsewhere() {
    let Some((answer, pages)) = answer_and_documents::<PageEdits>("wikipedia-edits", "P4_pageState") else {
        return;
    };
    let rows = pages
        .iter()
        .map(|(key, page)| format!("{key}\t{}\t{}\t{}\t{}", page.events, page.delta, page.user, page.timestamp));
    assert_eq!(serde_json::json!({ "rows": pages.len(), "sha256": sha256_of_rows(rows) }), answer);
}
