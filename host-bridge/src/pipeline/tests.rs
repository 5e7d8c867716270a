//! Whole requests through the pipeline, against real servers on loopback.
