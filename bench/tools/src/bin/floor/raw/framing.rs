//! Where a message ends (RFC 9112, section 6). Peers are trusted here: nothing refuses what can be read in two ways.

use anyhow::{Context, Result, anyhow};
use httparse::{Header, Status};

/// What has to be known of a head.
pub(crate) struct Head {
    /// Bytes of the head itself.
    pub(crate) length: usize,
    pub(crate) body: Body,
    /// Whether the connection ends after the message.
    pub(crate) close: bool,
    /// Of a request: whether its method is HEAD.
    pub(crate) is_head: bool,
    /// Of a response: whether another head follows (1xx).
    pub(crate) interim: bool,
}

/// What is still to come of a body.
#[derive(PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    /// Bytes left of the chunk at hand, its CRLF included; 0 where the next size begins.
    Chunk(u64),
    Trailers,
    UntilClose,
}

/// Reads the head of a request; `None` while it is not whole.
pub(crate) fn request(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
    let body = declared(request.headers)?.unwrap_or(Body::Length(0));
    let close = closes(request.headers) || request.version == Some(0);
    Ok(Some(Head { length, body, close, is_head: request.method == Some("HEAD"), interim: false }))
}

/// Reads the head of a response to a request that was HEAD or not; `None` while it is not whole.
pub(crate) fn response(bytes: &[u8], to_head: bool) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let Status::Complete(length) = response.parse(bytes)? else { return Ok(None) };
    let code = response.code.context("a response without a status")?;
    let body = match code {
        _ if to_head => Body::Length(0),
        100..=199 | 204 | 304 => Body::Length(0),
        _ => declared(response.headers)?.unwrap_or(Body::UntilClose),
    };
    let close = closes(response.headers) || body == Body::UntilClose || response.version == Some(0);
    Ok(Some(Head { length, body, close, is_head: false, interim: (100..=199).contains(&code) }))
}

fn declared(headers: &[Header<'_>]) -> Result<Option<Body>> {
    let named = |name: &str| headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if named("transfer-encoding").is_some() {
        return Ok(Some(Body::Chunk(0)));
    }
    let Some(length) = named("content-length") else { return Ok(None) };
    Ok(Some(Body::Length(std::str::from_utf8(length.value)?.parse()?)))
}

fn closes(headers: &[Header<'_>]) -> bool {
    let connection = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    connection.into_iter().any(|header| header.value.eq_ignore_ascii_case(b"close"))
}

impl Body {
    pub(crate) fn is_whole(&self) -> bool {
        *self == Self::Length(0)
    }

    /// How many of these bytes belong to the body and may go on. A chunk's size stays until its line is whole.
    pub(crate) fn consume(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            match self {
                Self::UntilClose => return Ok(bytes.len()),
                Self::Length(left) => {
                    let now = (rest.len() as u64).min(*left);
                    *left -= now;
                    return Ok(used + usize::try_from(now)?);
                }
                Self::Chunk(0) => match httparse::parse_chunk_size(rest).map_err(|_| anyhow!("a bad chunk size"))? {
                    Status::Partial => return Ok(used),
                    Status::Complete((line, size)) => {
                        used += line;
                        *self = if size == 0 { Self::Trailers } else { Self::Chunk(size + 2) };
                    }
                },
                Self::Chunk(left) => {
                    let now = (rest.len() as u64).min(*left);
                    *left -= now;
                    used += usize::try_from(now)?;
                    if *left > 0 {
                        return Ok(used);
                    }
                }
                Self::Trailers => {
                    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(used) };
                    used += end + 1;
                    if rest[..end].iter().all(|byte| *byte == b'\r') {
                        *self = Self::Length(0);
                    }
                }
            }
        }
    }
}

const HEADERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::{Body, response};

    #[test]
    fn a_chunked_body_ends_with_its_trailers_however_it_is_cut() {
        let whole = b"5\r\nhello\r\n1;name=value\r\n!\r\n0\r\nA: b\r\n\r\n";
        for cut in 0..whole.len() {
            let mut body = Body::Chunk(0);
            let first = body.consume(&whole[..cut]).unwrap();
            let second = body.consume(&whole[first..]).unwrap();
            assert_eq!(first + second, whole.len(), "cut at {cut}");
            assert!(body.is_whole(), "cut at {cut}");
        }
    }

    #[test]
    fn what_follows_a_body_is_not_of_it() {
        assert_eq!(Body::Length(3).consume(b"abcGET").unwrap(), 3);
        assert_eq!(Body::Chunk(0).consume(b"0\r\n\r\nGET").unwrap(), 5);
    }

    #[test]
    fn a_response_without_a_length_lasts_until_the_connection_ends() {
        let head = response(b"HTTP/1.1 200 OK\r\n\r\n", false).unwrap().unwrap();
        assert!(head.body == Body::UntilClose && head.close);
        let head = response(b"HTTP/1.1 204 No Content\r\n\r\n", false).unwrap().unwrap();
        assert!(head.body.is_whole() && !head.close);
    }
}
