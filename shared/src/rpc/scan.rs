//! Finds the top-level `id` and `method` of a JSON-RPC request while its bytes pass by.
