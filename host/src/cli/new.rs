//! `millstream new`. In: a name. Out: a handler crate that builds and whose test passes as generated. Never: writes
//! into a folder that is there already.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::Fault;
use crate::names;

/// Make a new handler crate.
#[derive(Debug, Args)]
pub(super) struct New {
    /// Name of the handler, of its crate and of its folder.
    name: String,
    /// Where to make the folder.
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    path: PathBuf,
    /// Folder of millstream-sdk; by default the one beside this program's source, else the published crate.
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
}

impl New {
    pub(super) fn run(self) -> Result<(), Fault> {
        let name = self.name.as_str();
        let is_crate = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
        if !is_crate || names::handler_name_defect(name).is_some() {
            return Err(Fault::usage(anyhow::anyhow!("`{name}` cannot name a crate and a bucket"))
                .hint("use lower-case letters, digits and `-`, such as customer-spend"));
        }
        let folder = self.path.join(name);
        if folder.exists() {
            return Err(
                Fault::usage(anyhow::anyhow!("{} is already there", folder.display())).hint("choose another name")
            );
        }
        let type_name = camel_case(name);
        let fill = |template: &str| {
            template.replace("{{name}}", name).replace("{{type}}", &type_name).replace("{{sdk}}", &self.sdk())
        };
        write(&folder, "Cargo.toml", &fill(CARGO))?;
        write(&folder, "src/lib.rs", &fill(SOURCE))?;
        write(&folder, "rust-toolchain.toml", TOOLCHAIN)?;
        write(&folder, ".gitignore", "/target\n")?;
        eprintln!("made {}; next:", folder.display());
        eprintln!("  cd {}", folder.display());
        eprintln!("  cargo test");
        eprintln!("  cargo build --profile module --target wasm32-unknown-unknown");
        eprintln!("  millstream deploy target/wasm32-unknown-unknown/module/{}.wasm", name.replace('-', "_"));
        eprintln!(
            "or let `millstream dev {}` test, build and run it after each save, on a server of its own",
            folder.display()
        );
        Ok(())
    }

    /// The SDK as Cargo.toml names it.
    fn sdk(&self) -> String {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let folder = self.sdk.clone().or_else(|| beside.is_dir().then_some(beside));
        match folder.and_then(|folder| folder.canonicalize().ok()) {
            Some(folder) => format!("{{ path = {:?} }}", folder.display().to_string()),
            None => format!("{:?}", env!("CARGO_PKG_VERSION")),
        }
    }
}

fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = folder.join(name);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    std::fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))
}

fn camel_case(name: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(capital).collect()
}

const TOOLCHAIN: &str = r#"[toolchain]
channel = "stable"
targets = ["wasm32-unknown-unknown"]
"#;

const CARGO: &str = r#"[package]
name = "{{name}}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib", "rlib"]

[dependencies]
millstream-sdk = {{sdk}}
serde = { version = "1", features = ["derive"] }

# Fast code, with function names kept so that a trap shows where it happened.
[profile.module]
inherits = "release"
lto = "fat"
codegen-units = 1
strip = "debuginfo"
overflow-checks = true

[workspace]
"#;

const SOURCE: &str = r#"//! Counts things by name. Replace event, key and fold with your own.

use millstream_sdk::prelude::*;

/// The document: one per key, JSON in the bucket `{{name}}`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct {{type}} {
    pub count: u64,
}

/// The events it understands; all others are irrelevant to it.
#[derive(Debug, Event)]
pub enum Happened {
    #[event(alias = "happened")]
    SomethingHappened { name: String },
}

impl Projection for {{type}} {
    const NAME: &'static str = "{{name}}";
    const SUBJECTS: &'static [&'static str] = &["events.>"];
    type Event = Happened;

    /// Which document an event touches.
    fn key(event: &Recorded<Happened>) -> Keys<'_> {
        match &event.payload {
            Happened::SomethingHappened { name } => Keys::one(name),
        }
    }

    /// How an event changes it.
    fn apply(&mut self, event: &Recorded<Happened>) -> Verdict {
        match &event.payload {
            Happened::SomethingHappened { .. } => self.count += 1,
        }
        keep()
    }
}

export!({{type}});

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{event, given, json};

    #[test]
    fn counts_by_name() {
        let happened = || event("SomethingHappened", json!({ "name": "a" }));
        given::<{{type}}>([happened()]).when(happened()).then_document("a", &{{type}} { count: 2 });
    }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_names_become_type_names() {
        assert_eq!(camel_case("customer-spend"), "CustomerSpend");
        assert_eq!(camel_case("a"), "A");
    }
}
