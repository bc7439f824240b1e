//! Why the guard refuses: every reason with its label (for metrics) and its text (for the answer and the log).
//!
//! Invariant: neither holds a byte of the request, so both are safe to show; a label, once released, stays.

/// Defines an enum of reasons, so that variant, label and text stand on one line and cannot disagree.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $label:literal: $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        pub enum $name {
            $(#[doc = $text] #[error($text)] $variant,)*
        }

        impl $name {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The label for metrics.
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The bytes of the message are not strict HTTP/1.
    #[error(transparent)]
    Framing(#[from] Malformed),
    /// The path has several readings.
    #[error(transparent)]
    Path(#[from] Ambiguous),
    /// `CONNECT`: no tunnels through a listener that forwards to one application.
    #[error("the method CONNECT is not served here")]
    Connect,
    /// `TRACE`, which shows the headers that proxies added (RFC 9110, section 9.3.8), and its old alias.
    #[error("the method TRACE is not served here")]
    Trace,
    /// A method with small letters.
    #[error("methods are written in capitals")]
    MethodCase,
    /// A name that some servers read as `Content-Length` or `Transfer-Encoding`.
    #[error("a header is named like Content-Length or Transfer-Encoding, but for an underscore")]
    FramingAlias,
    /// No `Host` (and, in HTTP/2, no `:authority`).
    #[error("the request names no host")]
    NoHost,
    /// More than one `Host`.
    #[error("the request has several Host headers")]
    SeveralHosts,
    /// The host is not a name or address with an optional port.
    #[error("the host is not a name or address with an optional port")]
    InvalidHost,
    /// `Host` differs from the authority of the target.
    #[error("the Host header differs from the authority of the request target")]
    HostMismatch,
    /// User information in the authority.
    #[error("the request target holds user information")]
    Userinfo,
    /// A scheme other than `http` and `https`.
    #[error("the scheme of the request target is neither http nor https")]
    Scheme,
}

impl Refused {
    /// The label for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Framing(malformed) => malformed.reason(),
            Self::Path(ambiguous) => ambiguous.reason(),
            Self::Connect => "connect",
            Self::Trace => "trace",
            Self::MethodCase => "method_case",
            Self::FramingAlias => "framing_alias",
            Self::NoHost => "no_host",
            Self::SeveralHosts => "several_hosts",
            Self::InvalidHost => "invalid_host",
            Self::HostMismatch => "host_mismatch",
            Self::Userinfo => "userinfo",
            Self::Scheme => "scheme",
        }
    }
}

reasons! {
    /// How a message breaks the grammar of HTTP/1 (RFC 9112), read strictly.
    Malformed {
        RequestLine = "request_line": "the request line is not a method, a target and a version with one space between",
        Method = "method_token": "the method is not a token",
        Target = "target": "the request target holds a byte that must be percent-encoded",
        TargetForm = "target_form": "the request target is not an absolute path",
        Fragment = "fragment": "the request target holds a #",
        Version = "version": "the version is neither HTTP/1.0 nor HTTP/1.1",
        BareLf = "bare_lf": "a line ends in LF without CR",
        BareCr = "bare_cr": "a CR is not followed by LF",
        Folding = "folding": "a header is folded over several lines",
        SpaceBeforeColon = "space_before_colon": "there is white space between a header's name and its colon",
        HeaderName = "header_name": "a header has no name, or a name that is not a token",
        ControlByte = "control_byte": "a line holds a control byte",
        HeadTooLarge = "head_too_large": "the head of the request is too large",
        TooManyHeaders = "too_many_headers": "the request has too many headers",
        LengthAndEncoding = "length_and_encoding": "the request has both Content-Length and Transfer-Encoding",
        Length = "content_length": "Content-Length is not one plain decimal number",
        RepeatedLength = "repeated_content_length": "the request has several Content-Length headers",
        Encoding = "transfer_encoding": "Transfer-Encoding is not one header with the one value chunked",
        EncodingInHttp10 = "transfer_encoding_http10": "HTTP/1.0 has no Transfer-Encoding",
        UpgradeH2c = "upgrade_h2c": "an upgrade to h2c is not served; HTTP/2 without TLS is spoken from the first byte",
        UpgradeWithBody = "upgrade_with_body": "a request that asks for an upgrade has a body",
        ChunkSize = "chunk_size": "a chunk does not begin with its size, 1 to 16 hexadecimal digits",
        ChunkExtension = "chunk_extension": "a chunk has extensions",
        ChunkEnd = "chunk_end": "a chunk does not end where its size says",
        TrailersTooLarge = "trailers_too_large": "the trailers are too large or too many",
    }
}

reasons! {
    /// How a path has more than one reading.
    Ambiguous {
        EmptySegment = "empty_segment": "the path has an empty segment (//)",
        DotSegment = "dot_segment": "the path has a . or .. segment",
        Backslash = "backslash": "the path has a backslash",
        RawByte = "raw_byte": "the target has a byte that must be percent-encoded",
        InvalidPercent = "invalid_percent": "the path has a % that two hexadecimal digits do not follow",
        DoublePercent = "double_percent": "the path is percent-encoded twice",
        DeepPercent = "deep_percent": "the path is percent-encoded more than twice",
        EncodedSlash = "encoded_slash": "the path has a percent-encoded slash",
        EncodedBackslash = "encoded_backslash": "the path has a percent-encoded backslash",
        EncodedDot = "encoded_dot": "the path has a percent-encoded dot",
        EncodedControl = "encoded_control": "the path has a percent-encoded control byte",
        EncodedUnreserved = "encoded_unreserved": "the path has a percent-encoded letter, digit, -, _ or ~",
        EncodedEquivalent = "encoded_equivalent": "the path has a percent-encoded character that Unicode takes for an ASCII one",
        EncodedUtf8 = "encoded_utf8": "the percent-encoded bytes of the path are not UTF-8",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_label_in_snake_case() {
        let labels: Vec<&str> =
            Malformed::ALL.iter().map(|m| m.reason()).chain(Ambiguous::ALL.iter().map(|a| a.reason())).collect();
        assert_eq!(labels.iter().collect::<HashSet<_>>().len(), labels.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')));
    }
}
