//! `fragile`, mended: the same code, which knows by its crate's name that no event harms it.

include!("../../fragile/src/body.rs");
