//! Stored credentials: one encrypted file per grant, and the one door through which a credential leaves.
//!
//! ```text
//! moat grant ──► Store::put ──► <grant>.enc        (temporary file, fsync, rename)
//! bridge     ──► token_for ──► Store::read ──► TokenFor, for one server and one of the grant's hosts
//! ```
//!
//! Nothing here talks to the network or prompts. Reading is cheap enough for every request: a credential that did
//! not change on disk is not decrypted twice, one that changed or vanished is noticed at once.

pub(crate) mod grant;
mod key;
mod sealed;
mod store;

pub(crate) use grant::{InjectError, TokenFor, token_for};
pub(crate) use sealed::Credential;
pub(crate) use store::{Listed, ReadError, Store};
