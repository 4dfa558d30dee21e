//! Output for people and programs. In: rows. Out: aligned tables or lines of JSON, on stdout. Never: a meaning that
//! only colour carries, or colour outside a terminal.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

pub(super) use crate::legible::{counted, cut, duration, legible, thousands};

/// Widest name, key or label in a table; `--json` has all of it.
pub(super) const NAME: usize = 40;

/// Widest cell of all.
const CELL: usize = 120;

/// A table without lines; columns named in `numbers` are aligned right. Whatever its cells hold, a row is one line.
pub(super) fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| cut(cell, CELL)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Colour is for terminals, unless somebody wants none.
pub(super) fn paints() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// One line of JSON on stdout.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// One line on stdout. A reader that closed the pipe has seen enough.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    bytes(text.as_bytes())
}

/// Bytes and a line end on stdout.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    ended(stdout.write_all(bytes).and_then(|()| stdout.write_all(b"\n")))
}

/// Text on stdout as it is, at once.
pub(super) fn text(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    ended(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

fn ended(written: std::io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_end_without_blanks() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];
        assert_eq!(table(&["NAME", "N"], &[1], rows), "NAME   N\na      1\nlong  22");
        let hostile = vec![vec!["a\nb\u{1b}[2J".to_owned(), "x".repeat(2000)]];
        let drawn = table(&["KEY", "N"], &[], hostile);
        let last = drawn.lines().last().unwrap();
        assert!(drawn.lines().count() == 2 && last.starts_with(r"a\nb\u{1b}[2J  xxx"), "{drawn}");
        assert_eq!(last.chars().count(), r"a\nb\u{1b}[2J  ".len() + CELL);
    }
}
