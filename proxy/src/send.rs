//! Sends a request of the general path over a connection of the pool, and gives back the response as it comes.
//!
//! A connection may have died while it waited. A request of which nothing was sent, or that is safe (RFC 9110, section
//! 9.2.1) and has no body, goes over another one then. Nothing is sent again once a byte of the response was seen.

mod over_link;
mod over_stream;
mod received;

use std::io;
use std::sync::Arc;

use http::{Request, Response};

use crate::fault::Fault;
use crate::guard::HeadLimits;
use crate::http1::response::Asked;
use crate::live::Flight;
use crate::live::body::RequestBody;
use crate::pool::{Pool, Turn, Way};
use crate::serve::Interim;
pub(crate) use over_link::Switched;
pub(crate) use received::Received;

/// What came back.
pub(crate) enum Answered {
    Response(Response<Received>),
    /// The next hop speaks another protocol from here on.
    Switched(Response<()>, Switched),
}

/// What all attempts at a request have in common.
struct Asking<'a> {
    pool: &'a Arc<Pool>,
    held: Held,
    /// Takes interim responses back to the caller.
    interim: &'a Interim,
}

/// Why nothing came back.
struct Unanswered {
    error: io::Error,
    /// Whether nothing was sent.
    unsent: bool,
    /// The request, if it may be sent again.
    again: Option<Request<RequestBody>>,
}

/// Sends a request and waits for the head of its response; notes in `flight` what it goes over.
///
/// # Errors
/// What went wrong, as the caller will hear of it.
pub(crate) async fn send(
    pool: &Arc<Pool>,
    mut request: Request<RequestBody>,
    interim: &Interim,
    flight: &Flight,
) -> Result<Answered, Fault> {
    let asking = Asking { pool, held: Arc::new(pool.enter()), interim };
    // A body is held back on a link alone.
    let mut way = if over_link::waits_for_consent(&request) { pool.link().await? } else { pool.way().await? };
    let mut attempts = 1;
    loop {
        pool.note(flight, &way);
        let sent = match way {
            Way::Link(link) => over_link::send(&asking, link, request).await,
            Way::Stream(stream) => over_stream::send(&asking, stream, request).await,
        };
        let unanswered = match sent {
            Ok(answered) => return Ok(answered),
            Err(unanswered) => unanswered,
        };
        request = again(pool, unanswered, &mut attempts)?;
        way = pool.another().await?;
    }
}

/// Sends a request over a connection of its own, which it may turn into something else.
///
/// # Errors
/// As of [`send`].
pub(crate) async fn send_alone(
    pool: &Arc<Pool>,
    mut request: Request<RequestBody>,
    interim: &Interim,
    flight: &Flight,
) -> Result<Answered, Fault> {
    let asking = Asking { pool, held: Arc::new(pool.enter()), interim };
    let mut attempts = 1;
    loop {
        let link = pool.new_link().await?;
        pool.note_leg(flight, &link.entry);
        request = match over_link::send(&asking, link, request).await {
            Ok(answered) => return Ok(answered),
            Err(unanswered) => again(pool, unanswered, &mut attempts)?,
        };
    }
}

fn again(pool: &Pool, unanswered: Unanswered, attempts: &mut u32) -> Result<Request<RequestBody>, Fault> {
    let Unanswered { error, unsent, again } = unanswered;
    match again {
        Some(request) if *attempts < MOST_ATTEMPTS => {
            tracing::debug!(listener = %pool.listener().name, %error,
                "a connection was dead; sending the request over another");
            *attempts += 1;
            Ok(request)
        }
        _ if unsent => Err(pool.explain_unsent(&error)),
        _ => Err(pool.explain(&error)),
    }
}

/// What is to be known of a response to a request of this method.
fn asked(pool: &Pool, method: &http::Method) -> Asked {
    let limits = &pool.listener().limits;
    let limits = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    // What an app may not say is taken from the head by who asked.
    Asked { is_head: method == http::Method::HEAD, from_app: false, close: false, limits }
}

/// What the parts of an answered request hold until it has ended.
type Held = Arc<Turn>;

const MOST_ATTEMPTS: u32 = 3;
