//! The two readers of HTTP/1.1, the fast path and the general path, make the same of the same bytes.
//!
//! The rows are those of the guard's tests. What the fuzzer found is in `fuzz/corpus`, and replayed there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "guard/generated.rs"]
mod generated;
#[path = "guard/rows.rs"]
mod rows;

#[path = "differential/requests.rs"]
mod requests;
#[path = "differential/responses.rs"]
mod responses;
