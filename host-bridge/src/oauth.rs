//! OAuth: how a person gives moat a credential, and how the bridge keeps it alive.
//!
//! ```text
//! moat grant oauth ─► grant: discovery ─► client ─► browser, pasted address or device ─► exchange ─► record
//! bridge           ─► renewals: one flight per grant ─► refresh (the machines) ─► port (files, token endpoint)
//! moat revoke      ─► revoke: RFC 7009, then the files
//! ```
//!
//! Discovery happens while a person grants, and never at run time: a server that could move the token endpoint later
//! would collect refresh tokens. Every request goes through [`http`], and no address escapes [`guard`].

pub(crate) mod authorize;
pub(crate) mod browser;
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod device;
pub(crate) mod discovery;
pub(crate) mod grant;
pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod listener;
pub(crate) mod port;
pub(crate) mod record;
pub(crate) mod refresh;
pub(crate) mod renewals;
pub(crate) mod revoke;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod token;
