//! What the tools of the measurements share: mutual TLS, an HTTP/1.1 client without a wasted copy, a clock.
//!
//! None of it is the product, and none of it is shared with the product: the tools are what the product is measured
//! with, so a fault must not be in both.

pub mod clock;
pub mod http1;
pub mod limits;
pub mod tls;
