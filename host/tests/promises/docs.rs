//! The pages about sagas show code that is tested elsewhere: each of their Rust blocks stands in the file that it names.

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
