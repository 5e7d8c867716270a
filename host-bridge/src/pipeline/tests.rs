//! Whole requests through the pipeline, against real servers on loopback: a module per subject, named by the rules of
//! the relay that it holds.

mod answers;
mod loss;
mod policies;
mod requests;
mod secrets;
mod streams;
