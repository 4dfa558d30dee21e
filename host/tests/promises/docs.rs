//! The pages about sagas show code that is tested elsewhere: each of their Rust blocks stands in the file that it names. The tables
//! of what follows a host's death name tests that are there.

use std::path::Path;

/// A line of code, wherever it is indented.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[test]
fn the_pages_about_sagas_show_the_code_of_the_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut shown = 0;
    for page in ["write-a-saga.md", "compensation.md", "timers-and-deadlines.md"] {
        let text = std::fs::read_to_string(root.join("docs").join(page)).expect("the page");
        for (before, block) in text.split("```rust\n").zip(text.split("```rust\n").skip(1)) {
            let marker = before.trim_end().lines().last().unwrap_or_default();
            let file = marker.strip_prefix("<!-- from ").and_then(|rest| rest.strip_suffix(" -->"));
            let file =
                file.unwrap_or_else(|| panic!("{page}: a block of Rust does not say where it is from: {marker}"));
            let code = std::fs::read_to_string(root.join(file)).expect("the example");
            let block = block.split("```").next().expect("a block");
            let (code, block) = (lines(&code), lines(block));
            let is_there = code.windows(block.len()).any(|part| part == block.as_slice());
            assert!(is_there, "{page}: not in {file}:\n{}", block.join("\n"));
            shown += 1;
        }
    }
    assert_eq!(shown, 8);
}

/// Whether a file of this folder has a test of that name. Those of the crash points are made by a macro: `name: "point",`.
fn is_a_test(file: &str, name: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises").join(file).with_extension("rs");
    let code = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let code = lines(&code);
    let by_hand = |pair: &[&str]| pair[0].starts_with("#[t") && pair[1].contains(&format!("fn {name}()"));
    code.windows(2).any(by_hand) || code.iter().any(|line| line.starts_with(&format!("{name}: \"")))
}

#[test]
fn each_row_of_what_follows_a_host_s_death_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let page = std::fs::read_to_string(root.join("docs/what-if-the-host-dies.md")).expect("the page");
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| test |")) {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().expect("a cell");
        let name = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        let (file, name) = name.and_then(|name| name.split_once("::")).unwrap_or_else(|| panic!("no test: {row}"));
        assert!(is_a_test(file, name), "there is no test {file}::{name}");
        rows += 1;
    }
    assert!(rows > 40, "the tables are not read: {rows} rows");
}
