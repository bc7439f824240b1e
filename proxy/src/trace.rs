//! The trace that a request is part of, as its header `traceparent` says it: for the log, and for spans. Of a
//! request that is not recorded the header passes on as it came.
//!
//! <https://www.w3.org/TR/trace-context-1/>

use http::HeaderMap;
use memchr::{memchr, memchr_iter};
use opentelemetry::trace::{SpanId, TraceId};

/// What a valid `traceparent` begins with: version, trace ID, parent ID and flags, whose place is fixed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trace([u8; KNOWN]);

impl Trace {
    /// What `headers` say. Several say nothing: it is not known which of them the next hop goes by.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(NAME).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { Self::read(value.as_bytes().trim_ascii()) }
    }

    /// What a head of HTTP/1.1 says that the guard has let pass.
    pub(crate) fn in_head(head: &[u8]) -> Option<Self> {
        // The first line is none of a header.
        let mut values = memchr_iter(b'\n', head).filter_map(|end| {
            let line = head.get(end + 1..).filter(|line| line.first().is_some_and(|byte| byte | 0x20 == b't'))?;
            let (name, rest) = line.split_at_checked(NAME.len())?;
            if name.eq_ignore_ascii_case(NAME.as_bytes()) { rest.strip_prefix(b":") } else { None }
        });
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        let end = memchr(b'\n', value).unwrap_or(value.len());
        Self::read(value.get(..end).unwrap_or_default().trim_ascii())
    }

    /// The 32 digits of the trace.
    pub(crate) fn trace_id(&self) -> &str {
        self.as_str().get(3..35).unwrap_or_default()
    }

    /// The 16 digits of the span that the request is sent in: the caller's.
    pub(crate) fn span_id(&self) -> &str {
        self.as_str().get(36..52).unwrap_or_default()
    }

    /// A trace that begins here, and that is recorded.
    pub(crate) fn root(trace: TraceId, span: SpanId) -> Self {
        Self::said(&format!("00-{trace}-{span}-01"))
    }

    /// The same trace, in a span of ours, with the flags that are known. Of versions to come nothing is known but that
    /// it is recorded (section 4.3.2).
    pub(crate) fn child(&self, span: SpanId) -> Self {
        let known = if self.0.starts_with(b"00") { SAMPLED | RANDOM } else { SAMPLED };
        Self::said(&format!("00-{}-{span}-{:02x}", self.trace_id(), self.flags() & known))
    }

    /// A trace that is not recorded: neither sidecar on its way makes a span of it.
    pub(crate) fn unrecorded(trace: TraceId, span: SpanId) -> Self {
        Self::said(&format!("00-{trace}-{span}-00"))
    }

    /// The header's value, as far as it is known.
    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }

    pub(crate) fn flags(&self) -> u8 {
        self.as_str().get(53..).and_then(|flags| u8::from_str_radix(flags, 16).ok()).unwrap_or_default()
    }

    /// Whether the trace is recorded.
    pub(crate) fn is_sampled(&self) -> bool {
        self.flags() & SAMPLED != 0
    }

    /// Versions to come may say more, after what this one says (section 4.3.2).
    fn read(value: &[u8]) -> Option<Self> {
        let (known, more) = value.split_at_checked(KNOWN)?;
        let text = str::from_utf8(known).ok()?;
        let mut parts = text.split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let said = |part: &str| part.bytes().any(|byte| byte != b'0');
        let ends = more.is_empty() || (version != "00" && more.starts_with(b"-"));
        let valid = lengths && [version, trace, span, flags].into_iter().all(is_hex) && version != "ff";
        let known = known.try_into().ok()?;
        (valid && ends && said(trace) && said(span)).then_some(Self(known))
    }

    /// What is made of IDs is as long as it has to be.
    fn said(text: &str) -> Self {
        Self(text.as_bytes().try_into().unwrap_or([b'0'; KNOWN]))
    }
}

pub(crate) const NAME: &str = "traceparent";

const SAMPLED: u8 = 1;

/// The trace ID is random (Trace Context, level 2).
const RANDOM: u8 = 2;

/// How much of a value is known, in bytes.
const KNOWN: usize = 55;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn ids(value: &str) -> Option<(String, String)> {
        let trace = Trace::read(value.as_bytes())?;
        Some((trace.trace_id().to_owned(), trace.span_id().to_owned()))
    }

    #[test]
    fn a_valid_traceparent_gives_its_ids_whatever_its_flags_and_whatever_later_versions_add() {
        let expected = Some(("0af7651916cd43dd8448eb211c80319c".to_owned(), "b7ad6b7169203331".to_owned()));
        let (later, flags) = (VALID.replacen("00", "cc", 1), VALID.replace("-01", "-ff"));
        for value in [VALID, &later, &flags, &format!("{later}-what the future will say")] {
            assert_eq!(ids(value), expected, "{value}");
        }
    }

    #[test]
    fn an_invalid_traceparent_gives_nothing() {
        for value in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}0"),
            &format!("{VALID}-00"),
            &VALID.replacen("00", "ff", 1),
            &VALID.replacen("00", "cc", 1).replace("-01", "-01.more"),
            &VALID.replacen("00", "0A", 1),
            &VALID.to_uppercase(),
            &VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &VALID.replace("b7ad6b7169203331", &"0".repeat(16)),
            &VALID.replace("0af7", "0ag7"),
            &VALID.replace("-01", "-0g"),
            &VALID.replace("-b7", "_b7"),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033312-1",
            "00-0af7651916cd43dd8448eb211c8031\u{e9}-b7ad6b7169203331-01",
        ] {
            assert_eq!(ids(value), None, "{value}");
        }
    }

    #[test]
    fn both_readings_of_a_head_find_the_same_and_two_traceparents_are_none() {
        for (lines, found) in [
            (vec![("traceparent", VALID)], true),
            (vec![("TraceParent", VALID)], true),
            (vec![("x-traceparent", VALID), ("traceparents", VALID)], false),
            (vec![("traceparent", VALID), ("tracestate", "a=b"), ("traceparent", VALID)], false),
            (vec![("traceparent", "other"), ("traceparent", VALID)], false),
            (vec![], false),
        ] {
            let text: String = lines.iter().map(|(name, value)| format!("{name}: {value} \r\n")).collect();
            let read = Trace::in_head(format!("GET /traceparent:{VALID} HTTP/1.1\r\n{text}host: a\r\n\r\n").as_bytes());
            let mut map = HeaderMap::new();
            for (name, value) in lines {
                let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                map.append(name, HeaderValue::from_str(&format!(" {value}\t")).unwrap());
            }
            assert_eq!(read, Trace::of(&map), "{text}");
            assert_eq!(read.is_some(), found, "{text}");
        }
    }
}
