//! Figures for people: the median of some runs with the least and the most, in tables without lines.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// `median (min-max)`.
pub(crate) fn spread_of(numbers: impl Iterator<Item = f64>, digits: usize) -> String {
    let (median, least, most) = middle(numbers);
    format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
}

/// Median, least and most.
pub(crate) fn middle(numbers: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
    (at(numbers.len() / 2), at(0), at(numbers.len().saturating_sub(1)))
}

/// A table; columns from `numbers` on are aligned right.
pub(crate) fn table(header: &[&str], numbers: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
