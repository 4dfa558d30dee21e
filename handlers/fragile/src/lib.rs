//! Fails where its events say so, in each way that a handler can: for tests of what becomes of such events. `fragile-mended` is the
//! same code, and takes all of them.

include!("body.rs");
