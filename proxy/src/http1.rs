//! HTTP/1.1 as bytes: heads that are judged and written as they are read, and bodies whose grammar is held to.

pub(crate) mod body;
pub(crate) mod convert;
mod lines;
#[cfg(feature = "fuzzing")]
pub(crate) mod readings;
pub(crate) mod request;
pub(crate) mod response;
