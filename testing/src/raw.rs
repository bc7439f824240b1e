//! Files of raw messages: one to a line, with escapes for what a line cannot hold.

/// The lines of such a file, without empty ones and comments.
pub fn rows(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The bytes that `text` stands for: `\r`, `\n`, `\t`, `\\` and `\xHH` are escapes, and `\<text*1000>` repeats.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let taken = match escape.as_bytes()[0] {
            b'r' => (bytes.push(b'\r'), 1).1,
            b'n' => (bytes.push(b'\n'), 1).1,
            b't' => (bytes.push(b'\t'), 1).1,
            b'\\' => (bytes.push(b'\\'), 1).1,
            b'x' => (bytes.push(u8::from_str_radix(&escape[1..3], 16).unwrap()), 3).1,
            b'<' => {
                let (repeated, _) = escape[1..].split_once('>').unwrap();
                let (unit, times) = repeated.rsplit_once('*').unwrap();
                (bytes.extend(unescape(unit).repeat(times.parse().unwrap())), repeated.len() + 2).1
            }
            _ => panic!("unknown escape in {text}"),
        };
        rest = &escape[taken..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
