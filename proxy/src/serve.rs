//! The server's side of HTTP on a connection, with every limit set: what comes in becomes calls, which somebody answers.

mod call;
mod http1;
mod http2;
mod stream_io;

pub(crate) use call::{Answers, Back, Call, Incoming, Interim, Switch};
pub(crate) use http1::serve_http1;
pub(crate) use http2::serve_http2;
