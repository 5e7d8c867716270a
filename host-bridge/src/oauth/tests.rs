//! OAuth as a whole, in one process, against a site that lies where a test wants it to. What a real authorization server
//! says to it is shown by the end-to-end tests.

mod bounds;
mod discovering;
mod granting;
mod mixed_up;
mod renewing;
