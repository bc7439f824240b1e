//! The raw requests of `requests.txt`, for every test that reads them.

/// One of them.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What the service behind the guard sees, in order.
    pub(crate) expected: Vec<&'static str>,
    pub(crate) raw: Vec<u8>,
}

/// The requests for a listener whose paths are strict.
pub(crate) fn rows() -> Vec<Row> {
    rows_of(include_str!("requests.txt"))
}

/// `name | what the service sees, in order | raw bytes`. In the raw bytes `\r`, `\n`, `\t`, `\\` and `\xHH` are
/// escapes, and `\<text*1000>` repeats.
pub(crate) fn rows_of(file: &'static str) -> Vec<Row> {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut columns = line.splitn(3, " | ");
            let (name, expected, raw) = (columns.next().unwrap(), columns.next().unwrap(), columns.next().expect(line));
            let expected = expected.split(", ").filter(|expected| *expected != "nothing").collect();
            Row { name, expected, raw: unescape(raw) }
        })
        .collect()
}

fn unescape(text: &str) -> Vec<u8> {
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
