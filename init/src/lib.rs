//! PID 1 duties and agent configuration files.
